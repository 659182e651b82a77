"""What was built, what runs here, and why not. `doctor()` always works: it needs no extension and raises nothing."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass, field
from pathlib import Path

from . import _extension
from ._version import __version__

# What each ISA's kernels need, as Linux names CPU features; asked of the system when the extension cannot tell.
ISA_FEATURES = {
    "scalar": (),
    "avx2": ("avx2", "fma", "f16c", "bmi2"),
    "avx512": ("avx512f", "avx512bw", "avx512vl", "avx512dq", "fma", "f16c"),
}


@dataclass
class Report:
    """sections: title -> {name: text}; problems: one sentence each, with its cure. Printing it gives the page."""

    sections: dict[str, dict[str, str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems

    def __str__(self) -> str:
        lines = []
        for title, facts in self.sections.items():
            width = max(map(len, facts), default=0)
            lines += [title, *(f"  {name:<{width}}  {text}" for name, text in facts.items()), ""]
        lines += ["problems", *(f"  {problem}" for problem in self.problems or ["none"])]
        return "\n".join(lines)

    __repr__ = __str__


def _versions(info: dict | None) -> dict[str, str]:
    import torch

    built = info or {}
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    return {
        "fastconv": f"{__version__}, from {Path(__file__).resolve().parent}",
        "torch running": f"{torch.__version__} ({cuda})",
        "torch built against": built.get("torch", "unknown"),
        "python": f"{platform.python_version()}, extension built with {built.get('python', 'unknown')}",
        "compiler": built.get("compiler", "unknown"),
        "system": platform.platform(),
    }


def _switches(info: dict | None) -> dict[str, str]:
    lines = (info or {}).get("switches", [])
    return dict(line.split(": ", 1) for line in lines) or {"none": "nothing was built, or the build left no record"}


def cpu_features(cpuinfo: str) -> set[str]:
    """The features that /proc/cpuinfo lists for the first CPU."""
    for line in cpuinfo.splitlines():
        if line.startswith(("flags", "Features")):
            return set(line.split(":", 1)[1].split())
    return set()


def _usable_isas() -> list[str]:
    try:
        features = cpu_features(Path("/proc/cpuinfo").read_text())
    except OSError:
        features = set()
    return [name for name, needed in ISA_FEATURES.items() if features.issuperset(needed)]


def _isas(info: dict | None, module, problems: list[str]) -> dict[str, str]:
    import torch

    built = info or {}
    facts = {"compiled": " ".join(built.get("isas", [])) or "unknown"}
    facts.update({f"{name} left out": why for name, why in built.get("isas_left_out", {}).items()})
    if module is None:
        facts["this CPU has"] = " ".join(_usable_isas())
        facts["in use"] = "none, the extension is not loaded"
    else:
        facts["usable on this CPU"] = " ".join(module.cpu_isas())
        try:
            facts["in use"] = module.cpu_isa()
        except RuntimeError as error:
            facts["in use"] = "none"
            problems.append(f"{error}; unset FASTCONV_CPU_ISA or set it to one of these")
    if os.environ.get("FASTCONV_CPU_ISA"):
        facts["FASTCONV_CPU_ISA"] = os.environ["FASTCONV_CPU_ISA"]
    facts["threads"] = str(torch.get_num_threads())
    return facts


def _devices(info: dict | None) -> dict[str, str]:
    import torch

    facts = {"cpu": platform.processor() or platform.machine()}
    if torch.version.cuda and torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            major, minor = torch.cuda.get_device_capability(i)
            facts[f"cuda:{i}"] = f"{torch.cuda.get_device_name(i)}, sm_{major}{minor}"
    else:
        facts["cuda"] = "none that torch can use" if torch.version.cuda else "none, torch is a CPU build"
    facts["CUDA architectures compiled"] = " ".join((info or {}).get("cuda_archs", [])) or "none"
    return facts


def _algorithms(module, info: dict | None) -> dict[str, str]:
    """Rows of the CUDA kernels say on what hardware they were seen to be right, if any (build_tools/verified.py)."""
    verified = (info or {}).get("verified_on", {})
    facts = {}
    for row in module.algorithms():
        text = f"{', '.join(row['passes'])}; {' '.join(row['dtypes'])}"
        if row["device"] != "cpu":
            text += f"; verified on: {verified.get(row['name'], 'unknown')}"
        facts[f"{row['device']} {row['name']}"] = text
    return facts


def _section(report: Report, title: str, make, *arguments) -> None:
    """A section that cannot be made is a problem in the report, so that the others are still shown."""
    try:
        report.sections[title] = make(*arguments)
    except Exception as error:
        report.sections[title] = {"unknown": f"{type(error).__name__}: {error}"}
        report.problems.append(f"fastconv: {title} cannot be told: {type(error).__name__}: {error}")


def doctor() -> Report:
    """Versions, build switches, ISAs, devices, the algorithm table and what is wrong, as a printable `Report`.

    Works with the extension missing, unloadable or built for another torch: that is then a problem with its cure.
    """
    report = Report()
    ok, message = _extension.status()
    module = _extension.load() if ok else None
    try:
        info = _extension.build_info()
    except _extension.ExtensionError:
        info = None  # `message` says what is wrong with it
    if not ok:
        report.problems.append(message)
    _section(report, "versions", _versions, info)
    _section(report, "build switches", _switches, info)
    _section(report, "CPU instruction sets", _isas, info, module, report.problems)
    _section(report, "devices", _devices, info)
    report.sections["extension"] = {"fastconv._C": message if ok else "not usable, see problems"}
    if module is not None:
        _section(report, "algorithms", _algorithms, module, info)
    return report


def main() -> int:
    report = doctor()
    sys.stdout.write(f"{report}\n")
    return 0
