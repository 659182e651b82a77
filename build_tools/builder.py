"""Decides, prints every switch, writes build/<key>/build.ninja, runs ninja and puts the result in place."""

from __future__ import annotations

import contextlib
import filecmp
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Callable, Iterator

from build_tools import facts, verified
from build_tools.ninja_file import Plan, render
from build_tools.switches import (
    Arch,
    Switch,
    SwitchError,
    choose_isas,
    cuda_switch,
    job_count,
    openmp_switch,
    parse_archs,
    torch_switch,
)

INFO_NAME = "_build_info.json"


def build_key(torch_version: str) -> str:
    """Folder name that two torches, two Pythons or two machines never share."""
    return f"torch{torch_version}-{sys.implementation.cache_tag}-{sysconfig.get_platform()}"


def extension_name() -> str:
    return "_C" + sysconfig.get_config_var("EXT_SUFFIX")


def decide(root: Path) -> tuple[Plan, dict, int]:
    """(what to build, what _build_info.json will say, how many jobs)."""
    switches = [torch_switch(facts.torch_version(), sys.executable)]
    torch = facts.torch_facts()
    sources = facts.find_sources(root)
    compiler = facts.Compiler()
    switches.append(Switch("Python", platform.python_version(), sysconfig.get_platform()))
    switches.append(Switch("Compiler", compiler.version))
    isas = choose_isas(platform.machine(), compiler.name, compiler.refused_flag)
    switches.append(isas.switch)
    switches.append(openmp_switch(compiler.name, compiler.refused_flag(["-fopenmp"])))

    cuda = facts.cuda_facts(torch, sources)
    switches.append(cuda_switch(os.environ, cuda))
    archs: tuple[Arch, ...] = ()
    cuda_includes, cudart = (), ""
    if switches[-1].on:
        archs = parse_archs(os.environ.get("TORCH_CUDA_ARCH_LIST", ""), torch.gpus, facts.nvcc_archs(cuda.nvcc))
        switches.append(Switch("CUDA architectures", " ".join(a.text for a in archs)))
        cuda_includes, cudart = facts.cuda_runtime(cuda.nvcc, torch.cuda)

    jobs, jobs_switch = job_count(os.environ.get("MAX_JOBS"), facts.core_count(), facts.free_memory())
    switches.append(jobs_switch)
    key = build_key(torch.version)
    flags = {name: tuple(shlex.split(os.environ.get(name, ""))) for name in ("CXXFLAGS", "LDFLAGS")}
    switches += [Switch(name, " ".join(words)) for name, words in flags.items() if words]
    switches.append(Switch("Build folder", f"build/{key}"))

    plan = Plan(
        folder=f"build/{key}",
        sources=sources,
        compiler=compiler.path,
        isas=isas.compiled,
        torch_includes=torch.includes,
        torch_lib=torch.lib,
        python_include=sysconfig.get_path("include"),
        cxx11_abi=torch.cxx11_abi,
        cxxflags=flags["CXXFLAGS"],
        ldflags=flags["LDFLAGS"],
        nvcc=cuda.nvcc if archs else None,
        archs=archs,
        cuda_includes=cuda_includes,
        cudart=cudart,
    )
    info = {
        "extension": extension_name(),
        "torch": torch.version,
        "torch_cuda": torch.cuda,
        "python": platform.python_version(),
        "platform": sysconfig.get_platform(),
        "compiler": compiler.version,
        "isas": list(isas.compiled),
        "isas_left_out": isas.left_out,
        "cuda": plan.cuda,
        "cuda_archs": [a.text for a in archs],
        "verified_on": verified.verified_on(root),
        "folder": plan.folder,
        "switches": [s.line for s in switches],
    }
    return plan, info, jobs


@contextlib.contextmanager
def _locked(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Two builds of one folder wait for each other: ninja itself does not lock."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say(f"waiting for another build in {folder}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    os.replace(temporary, path)


def check_loads(library: Path) -> None:
    """Loads the result in a fresh interpreter: an undefined symbol fails the build, not the first use."""
    code = (
        "import sys, torch, importlib.util as u\n"
        "spec = u.spec_from_file_location('fastconv._C', sys.argv[1])\n"
        "u.module_from_spec(spec)\n"
    )
    command = [sys.executable, "-c", code, str(library)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=library.parent)
    if done.returncode != 0:
        raise SwitchError(f"{library.name} was linked but does not load:\n{done.stdout.strip()}")


def place(library: Path, info: dict, package: Path) -> None:
    """Copies the library and writes its description, each under a temporary name and then renamed."""
    package.mkdir(parents=True, exist_ok=True)
    target = package / info["extension"]
    if not target.exists() or not filecmp.cmp(library, target, shallow=False):
        check_loads(library)
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.copyfile(library, temporary)
        os.replace(temporary, target)
    write_atomically(package / INFO_NAME, json.dumps(info, indent=1) + "\n")


def build_checked(root: Path, say: Callable[[str], None] = print) -> Path:
    """Builds the emulator with every access of a kernel checked (csrc/simt/checker); returns the library's path."""
    return _build_extra(root, "checked_output", say)


def build_sanitized(root: Path, say: Callable[[str], None] = print) -> Path:
    """Builds the emulator under sanitizers (tests/cuda/sanitized_main.cpp); returns the program's path."""
    return _build_extra(root, "sanitized_output", say)


def _build_extra(root: Path, target: str, say: Callable[[str], None]) -> Path:
    plan, _, jobs = decide(root)
    folder = root / plan.folder
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder, say):
        _run_ninja(root, plan, jobs, getattr(plan, target))
    return root / getattr(plan, target)


def _run_ninja(root: Path, plan: Plan, jobs: int, target: str) -> None:
    text, path = render(plan), root / plan.folder / "build.ninja"
    if not path.exists() or path.read_text() != text:
        write_atomically(path, text)
    sys.stdout.flush()
    command = [facts.find_ninja(), "-f", f"{plan.folder}/build.ninja", "-j", str(jobs), target]
    if subprocess.run(command, cwd=root).returncode != 0:
        raise SwitchError(f"the compilation failed, see above; the commands are in {plan.folder}/build.ninja")


def build(root: Path, packages: list[Path], version: str, say: Callable[[str], None] = print) -> dict:
    """Builds the extension of the tree at `root` into each folder of `packages`; raises SwitchError with the cure."""
    plan, info, jobs = decide(root)
    info = {"fastconv": version, **info}
    for line in info["switches"]:
        say(f"fastconv: {line}")
    folder = root / plan.folder
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder, say):
        _run_ninja(root, plan, jobs, plan.output)
        for package in packages:
            place(root / plan.output, info, package)
    return info
