"""The build's decisions, as pure functions of what was found: no file, process or variable is read here.

Each decision is a `Switch` whose `line` the build prints and records. What was asked for and cannot be
built is a `SwitchError` that names the cure; what was not asked for and cannot be built is a line that says why.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Callable, Iterable, Mapping, Sequence

MIN_TORCH = (2, 10)
GIB = 1 << 30
# The largest file of the bindings peaks at 0.9 GiB in g++ 12; twice that leaves room for other compilers.
BYTES_PER_JOB = 2 * GIB

KERNEL_ISAS: dict[str, tuple[str, ...]] = {
    "scalar": (),
    "avx2": ("-mavx2", "-mfma", "-mf16c", "-mbmi2"),
    "avx512": (
        "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c", "-mprefer-vector-width=512",
    ),
}  # fmt: skip
X86_64 = ("x86_64", "amd64")

DEFAULT_ARCHS = "8.0;9.0"
MIN_ARCH = 75  # CUDA 13 compiles for nothing older
# Architecture-specific (9.0a: wgmma, TMA) and family-specific (10.0f) code: the first of each.
VARIANTS_FROM = {"a": 90, "f": 100}
# The names that torch.utils.cpp_extension takes in TORCH_CUDA_ARCH_LIST.
NAMED_ARCHS = {
    "Turing": "7.5+PTX",
    "Ampere": "8.0;8.6+PTX",
    "Ada": "8.9+PTX",
    "Hopper": "9.0+PTX",
    "Blackwell": "10.0;12.0+PTX",
}


class SwitchError(Exception):
    """Something was asked for that cannot be built; the message names the cure."""


@dataclass(frozen=True)
class Switch:
    name: str
    value: str
    reason: str = ""

    @property
    def on(self) -> bool:
        return self.value != "off"

    @property
    def line(self) -> str:
        return f"{self.name}: {self.value}" + (f" ({self.reason})" if self.reason else "")


def version_tuple(text: str) -> tuple[int, ...]:
    """'2.13.0+cpu' -> (2, 13, 0); a suffix such as 'a0' or 'rc1' is left off."""
    found = re.match(r"\d+(?:\.\d+)*", text)
    if not found:
        raise SwitchError(f"{text!r} is no version number")
    return tuple(int(part) for part in found.group().split("."))


def torch_switch(version: str | None, python: str) -> Switch:
    least = ".".join(map(str, MIN_TORCH))
    cure = (
        f"install it for this interpreter, `{python} -m pip install 'torch>={least}'`, and build with "
        "`pip install --no-build-isolation .` (an isolated build cannot see it), or run `make build`, "
        "which sets up a .venv"
    )
    if version is None:
        raise SwitchError(f"torch is not installed, and fastconv compiles against its headers: {cure}")
    if version_tuple(version)[:2] < MIN_TORCH:
        raise SwitchError(f"torch {version} is too old, fastconv needs {least} or newer: {cure}")
    return Switch("Torch", version)


# --- CPU -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Isas:
    compiled: tuple[str, ...]
    left_out: dict[str, str]  # name -> reason

    @property
    def switch(self) -> Switch:
        reason = "; ".join(f"{name} left out: {why}" for name, why in self.left_out.items())
        return Switch("CPU ISAs", " ".join(self.compiled), reason)


def choose_isas(machine: str, compiler: str, refused_flag: Callable[[Sequence[str]], str | None]) -> Isas:
    """Which ISAs to compile. `refused_flag(flags)` tells what the compiler objects to, or None."""
    compiled, left_out = ["scalar"], {}
    for name, flags in KERNEL_ISAS.items():
        if name == "scalar":
            continue
        if machine.lower() not in X86_64:
            left_out[name] = f"this machine is {machine}, not x86-64"
        elif refused := refused_flag(flags):
            left_out[name] = f"{compiler} refuses {refused}"
        else:
            compiled.append(name)
    return Isas(tuple(compiled), left_out)


def openmp_switch(compiler: str, refused: str | None) -> Switch:
    if refused:
        raise SwitchError(
            f"{compiler} refuses {refused}, without which torch's parallel_for runs on one thread: "
            "set CXX to a compiler with OpenMP, such as g++"
        )
    return Switch("OpenMP", "on", "torch's own runtime; none is linked")


# --- CUDA ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CudaFacts:
    """What was found of CUDA: in torch, on the machine and in the source tree."""

    torch_version: str
    torch_cuda: str | None  # torch.version.cuda
    nvcc: str | None  # path
    nvcc_version: str | None
    sources: int  # how many csrc/cuda/*.cu


def cuda_request(env: Mapping[str, str]) -> bool | None:
    """True: FASTCONV_CUDA=1 or FORCE_CUDA=1; False: FASTCONV_CUDA=0; None: nothing was asked."""
    asked = {}
    for name in ("FASTCONV_CUDA", "FORCE_CUDA"):
        text = env.get(name, "").strip()
        if text not in ("", "0", "1"):
            raise SwitchError(f"{name}={text} is neither 0 nor 1: set it to 1 (built, or an error), 0, or unset it")
        asked[name] = text
    if asked["FASTCONV_CUDA"] == "0":
        if asked["FORCE_CUDA"] == "1":
            raise SwitchError("FASTCONV_CUDA=0 and FORCE_CUDA=1 contradict each other: unset one of them")
        return False
    # FORCE_CUDA=0 is what other projects' scripts set for "do not force".
    return True if "1" in asked.values() else None


def _cuda_obstacle(facts: CudaFacts) -> tuple[str, str] | None:
    """(why CUDA kernels cannot be built, the cure) or None."""
    if facts.torch_cuda is None:
        return (
            "torch is a CPU build",
            f"torch {facts.torch_version} lacks cuda_cmake_macros.h and libc10_cuda: install a CUDA build of torch",
        )
    if facts.nvcc is None:
        return (
            "no nvcc found",
            f"install the CUDA {facts.torch_cuda} toolkit and set CUDA_HOME to it, or put nvcc on PATH",
        )
    found, wanted = version_tuple(facts.nvcc_version or "0")[0], version_tuple(facts.torch_cuda)[0]
    if found != wanted:
        return (
            f"nvcc is CUDA {facts.nvcc_version}, torch is CUDA {facts.torch_cuda}",
            f"{facts.nvcc} and torch would load two CUDA runtimes: set CUDA_HOME to a CUDA {wanted} toolkit",
        )
    if facts.sources == 0:
        return (
            "this version has no CUDA kernels",
            "there is no csrc/cuda/*.cu in this source tree: use a version that has them",
        )
    return None


def cuda_switch(env: Mapping[str, str], facts: CudaFacts) -> Switch:
    request = cuda_request(env)
    if request is False:
        return Switch("CUDA kernels", "off", "FASTCONV_CUDA=0")
    obstacle = _cuda_obstacle(facts)
    if obstacle is None:
        return Switch("CUDA kernels", "on", f"torch is CUDA {facts.torch_cuda}, nvcc {facts.nvcc_version}")
    why, cure = obstacle
    if request:
        asked = "FASTCONV_CUDA=1" if env.get("FASTCONV_CUDA", "").strip() == "1" else "FORCE_CUDA=1"
        raise SwitchError(f"{asked} asks for CUDA kernels, but {why}: {cure}; or unset {asked.split('=')[0]}")
    return Switch("CUDA kernels", "off", why)


@dataclass(frozen=True)
class Arch:
    number: str  # "80", "90a"
    ptx: bool = False

    @property
    def gencode(self) -> tuple[str, ...]:
        flags = [f"-gencode=arch=compute_{self.number},code=sm_{self.number}"]
        if self.ptx:
            flags.append(f"-gencode=arch=compute_{self.number},code=compute_{self.number}")
        return tuple(flags)

    @property
    def text(self) -> str:
        return f"sm_{self.number}" + ("+PTX" if self.ptx else "")


def parse_archs(text: str, detected: Iterable[tuple[int, int]] = (), known: Iterable[str] = ()) -> tuple[Arch, ...]:
    """TORCH_CUDA_ARCH_LIST -> architectures, in rising order.

    text: '8.0;9.0', '8.0 9.0a+PTX', 'Hopper'; empty: the GPUs `detected`, or DEFAULT_ARCHS without one.
    known: what nvcc lists ('80', '90', ...; it lists no variants such as 90a); empty: not checked.
    """
    if not text.strip(" ;"):
        text = ";".join(f"{major}.{minor}" for major, minor in sorted(set(detected))) or DEFAULT_ARCHS
    example = f"write it as '{DEFAULT_ARCHS}', '9.0a', '8.6+PTX' or one of {', '.join(NAMED_ARCHS)}"
    known = set(known)
    archs: dict[str, Arch] = {}
    for name in filter(None, re.split(r"[;\s]+", text)):
        for word in NAMED_ARCHS.get(name, name).split(";"):
            found = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", word)
            if not found:
                raise SwitchError(f"TORCH_CUDA_ARCH_LIST holds {word!r}, which is no architecture: {example}")
            major, minor, variant, ptx = found.groups()
            base = int(major + minor)
            if variant and base < VARIANTS_FROM[variant]:
                since = VARIANTS_FROM[variant]
                raise SwitchError(
                    f"TORCH_CUDA_ARCH_LIST holds {word!r}, but variants {variant!r} begin "
                    f"at {since // 10}.{since % 10}{variant}: leave the letter off"
                )
            if base < MIN_ARCH:
                raise SwitchError(
                    f"TORCH_CUDA_ARCH_LIST holds {word!r}, older than what fastconv's kernels run on: "
                    f"name architectures from {MIN_ARCH // 10}.{MIN_ARCH % 10} on"
                )
            number = major + minor + variant
            if known and str(base) not in known:
                raise SwitchError(
                    f"TORCH_CUDA_ARCH_LIST holds {word!r}, which this nvcc cannot compile for: name one of "
                    + ", ".join(sorted(known, key=int))
                )
            archs[number] = Arch(number, bool(ptx) or (number in archs and archs[number].ptx))
    return tuple(sorted(archs.values(), key=lambda a: (int(a.number.rstrip("af")), a.number)))


# --- jobs ------------------------------------------------------------------------------------------------


def job_count(max_jobs: str | None, cores: int, free_bytes: int | None) -> tuple[int, Switch]:
    """How many compilers run at once: MAX_JOBS, else one a core; at most one per BYTES_PER_JOB of free memory."""
    if max_jobs:
        if not max_jobs.strip().isdigit() or int(max_jobs) < 1:
            raise SwitchError(f"MAX_JOBS={max_jobs} is no positive number: set it to one, or unset it")
        jobs, reason = int(max_jobs), f"MAX_JOBS={int(max_jobs)}"
    else:
        jobs, reason = max(1, cores), f"{cores} core" + ("s" if cores != 1 else "")
    if free_bytes is not None:
        fit = max(1, free_bytes // BYTES_PER_JOB)
        if fit < jobs:
            jobs = fit
            reason += f", capped: {free_bytes / GIB:.1f} GiB free at {BYTES_PER_JOB // GIB} GiB a job"
    return jobs, Switch("Jobs", str(jobs), reason)
