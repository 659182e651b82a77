"""Finds out what the decisions in switches.py rest on: torch, the compiler, nvcc, memory, the sources."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Sequence

from build_tools.ninja_file import Sources
from build_tools.switches import CudaFacts, SwitchError, version_tuple


def find_sources(root: Path) -> Sources:
    def found(pattern: str) -> tuple[str, ...]:
        return tuple(sorted(p.relative_to(root).as_posix() for p in root.glob(pattern)))

    sources = Sources(
        core=found("csrc/core/*.cpp"),
        cpu=found("csrc/cpu/*.cpp"),
        kernels=found("csrc/cpu/kernels/*.cpp"),
        bindings=found("csrc/bindings/*.cpp"),
        cuda=found("csrc/cuda/*.cu"),
        simt=found("csrc/simt/*.cpp"),
        checker=found("csrc/simt/checker/*.cpp"),
        planted=(*found("tests/cuda/atoms.cu"), *found("tests/cuda/planted.cu")),
        sanitized=found("tests/cuda/sanitized_main.cpp"),
    )
    if not sources.bindings:
        raise SwitchError(f"no csrc/bindings/*.cpp in {root}: the source tree is incomplete, clone it again")
    return sources


# --- tools -----------------------------------------------------------------------------------------------


def _output(command: Sequence[str]) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    if done.returncode != 0:
        raise SwitchError(f"`{' '.join(command)}` failed:\n{done.stdout.strip()}")
    return done.stdout


class Compiler:
    def __init__(self) -> None:
        asked = os.environ.get("CXX", "").strip()
        names = [asked] if asked else ["g++", "c++", "clang++"]
        self.path = next((path for name in names if (path := shutil.which(name))), "")
        if not self.path:
            cure = "install one, e.g. `apt-get install g++`, or set CXX"
            raise SwitchError(f"no C++ compiler found (looked for {', '.join(names)}): {cure}")
        self.name = Path(self.path).name
        self.version = _output([self.path, "--version"]).splitlines()[0]

    def _accepts(self, flags: Sequence[str]) -> bool:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.cpp")
            source.write_text("int probe;\n")
            # -Werror: clang only warns of a flag that it does not know.
            command = [self.path, "-Werror", *flags, "-c", str(source), "-o", str(Path(folder, "probe.o"))]
            return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0

    def refused_flag(self, flags: Sequence[str]) -> str | None:
        """The flags that a compilation fails with, or None if it succeeds with all of them."""
        if self._accepts(flags):
            return None
        return " ".join(flag for flag in flags if not self._accepts([flag])) or " ".join(flags)


def find_ninja() -> str:
    try:
        import ninja

        path = shutil.which("ninja", path=ninja.BIN_DIR)
    except ImportError:
        path = None
    path = path or shutil.which("ninja")
    if not path:
        raise SwitchError(f"ninja is not installed: `{sys.executable} -m pip install ninja`")
    return path


def find_nvcc() -> tuple[str | None, str | None]:
    """(path, version) of nvcc: CUDA_HOME's or CUDA_PATH's, PATH's, the default folder's, the pip wheels'."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    folders = [os.path.join(home, "bin") for home in homes] + [os.environ.get("PATH", ""), "/usr/local/cuda/bin"]
    folders += [str(home / "bin") for home in nvidia_wheels()]
    path = next((found for folder in folders if (found := shutil.which("nvcc", path=folder))), None)
    if path is None:
        return None, None
    version = re.search(r"release (\d+\.\d+)", _output([path, "--version"]))
    return path, version.group(1) if version else None


def nvcc_archs(nvcc: str) -> set[str]:
    return set(re.findall(r"compute_(\d+)", _output([nvcc, "--list-gpu-arch"])))


def toolkit_of(nvcc: str) -> Path:
    """The toolkit's folder as nvcc itself tells it: the path of nvcc may be a wrapper script's."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cu")
        source.touch()
        told = re.search(r"^#\$ TOP=(.+)$", _output([nvcc, "--dryrun", "-c", str(source), "-o", f"{source}.o"]), re.M)
    return (Path(told.group(1).strip()) if told else Path(nvcc).resolve().parent.parent).resolve()


def nvidia_wheels() -> list[Path]:
    """Folders of NVIDIA's pip wheels: nvidia/cu13 (CUDA 13: all in one), nvidia/cuda_runtime, ... (CUDA 12)."""
    return sorted(p for p in Path(sysconfig.get_path("purelib")).glob("nvidia/*") if p.is_dir())


def cuda_runtime(nvcc: str, cuda_version: str) -> tuple[tuple[str, ...], str]:
    """(include folders, library file) of the CUDA runtime that torch loads.

    Libraries of the wheels come before the toolkit's: linking against the file that torch has loaded cannot bring in a
    second runtime. Headers of the toolkit come before the wheels', which may lack crt/.
    """
    toolkit = toolkit_of(nvcc)
    own = [toolkit, *sorted(toolkit.glob("targets/*"))]
    homes = [*nvidia_wheels(), *own]
    headers = [h / "include" for h in [*own, *nvidia_wheels()] if (h / "include/cuda_runtime_api.h").is_file()]
    includes = list(dict.fromkeys(str(h.resolve()) for h in headers))  # include/ may link to targets/*/include
    name = f"libcudart.so.{version_tuple(cuda_version)[0]}"
    libraries = [str(h / lib / name) for h in homes for lib in ("lib", "lib64") if (h / lib / name).is_file()]
    if not includes or not libraries:
        missing = "cuda_runtime_api.h" if not includes else name
        raise SwitchError(
            f"{missing} is neither in the nvidia/* wheels nor in {toolkit}: "
            f"install the CUDA {cuda_version} toolkit and set CUDA_HOME to it"
        )
    return tuple(includes), libraries[0]


# --- machine ---------------------------------------------------------------------------------------------


def core_count() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory() -> int | None:
    """Bytes that compilers may use: MemAvailable, or less where a container's limit is lower; None if unknown."""
    free = []
    try:
        free.append(int(re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text()).group(1)) * 1024)
    except (OSError, AttributeError):
        pass
    try:
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            free.append(max(0, int(limit) - int((group / "memory.current").read_text())))
    except (OSError, ValueError):
        pass
    return min(free) if free else None


# --- torch -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Torch:
    version: str
    cuda: str | None
    includes: tuple[str, ...]
    lib: str
    cxx11_abi: bool
    gpus: tuple[tuple[int, int], ...]


def torch_version() -> str | None:
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        return None
    return str(torch.__version__)


def torch_facts() -> Torch:
    import torch
    from torch.utils.cpp_extension import include_paths

    gpus = ()
    if torch.version.cuda and torch.cuda.is_available():
        gpus = tuple(torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count()))
    return Torch(
        version=str(torch.__version__),
        cuda=torch.version.cuda,
        includes=tuple(include_paths()),
        lib=str(Path(torch.__file__).parent / "lib"),
        cxx11_abi=bool(torch.compiled_with_cxx11_abi()),
        gpus=gpus,
    )


def cuda_facts(torch: Torch, sources: Sources) -> CudaFacts:
    nvcc, version = find_nvcc()
    return CudaFacts(torch.version, torch.cuda, nvcc, version, len(sources.cuda))
