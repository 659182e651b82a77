"""The text of build.ninja: which source is compiled with which flags. Pure: sources in, text out.

ninja runs in the repository root, so every source and object is named relative to it. That keeps
the file right for clones whose path holds spaces, and compiler messages short.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Sequence

from build_tools.switches import KERNEL_ISAS, Arch

WARNINGS = ("-Wall", "-Wextra")
COMMON = ("-fPIC", "-fvisibility=hidden", "-fvisibility-inlines-hidden", "-DNDEBUG", "-Icsrc")
# -ffast-math is left out for its -ffinite-math-only: NaN and infinities must come out exact.
KERNEL_MATH = ("-fno-math-errno", "-ffp-contract=fast")
# -O3 doubles the compile time of the register tile's users, whose loops are unrolled by pragmas, and gains nothing.
# Pooling's loops are left to the compiler: without -O3 those over channels take 1.2 to 1.5 times as long.
OPTIMISED = ("-O2", "-ftree-vectorize", "-fvect-cost-model=dynamic")
UNROLLED = ("-O3",)
UNROLLED_KERNELS = ("avg_pool.cpp", "lp_pool.cpp", "max_pool.cpp", "max_pool_grad.cpp")
# Where others are compiled, the scalar kernels serve CPUs without AVX2 only. 5 % slower than at -O2, compiled in two
# thirds of the time.
BASELINE = ("-O1",)
# g++'s note that vectors are passed differently since GCC 4.6: no vector crosses a file here.
KERNEL_WARNINGS = ("-Wno-psabi",)


@dataclass(frozen=True)
class Sources:
    """Paths relative to the repository root."""

    core: tuple[str, ...]
    cpu: tuple[str, ...]
    kernels: tuple[str, ...]
    bindings: tuple[str, ...]
    cuda: tuple[str, ...] = ()
    simt: tuple[str, ...] = ()
    checker: tuple[str, ...] = ()
    planted: tuple[str, ...] = ()  # kernels with bugs, for the tests of the checker
    sanitized: tuple[str, ...] = ()  # a program that runs the emulator under sanitizers


@dataclass(frozen=True)
class Plan:
    folder: str  # build/<key>, relative to the repository root
    sources: Sources
    compiler: str
    isas: tuple[str, ...]
    torch_includes: tuple[str, ...]
    torch_lib: str
    python_include: str
    cxx11_abi: bool
    cxxflags: tuple[str, ...] = ()
    ldflags: tuple[str, ...] = ()
    nvcc: str | None = None  # None: CUDA kernels are off
    archs: tuple[Arch, ...] = ()
    cuda_includes: tuple[str, ...] = ()
    cudart: str = ""

    @property
    def output(self) -> str:
        return f"{self.folder}/_C.so"

    @property
    def checked_output(self) -> str:
        """The emulator with every access checked; not part of the default build."""
        return f"{self.folder}/checked.so"

    @property
    def sanitized_output(self) -> str:
        """The emulator under AddressSanitizer and UndefinedBehaviorSanitizer; a program, not in the default build."""
        return f"{self.folder}/sanitized"

    @property
    def cuda(self) -> bool:
        return self.nvcc is not None


def kernel_rule(isa: str, source: str) -> str:
    unrolled = isa != "scalar" and PurePosixPath(source).name in UNROLLED_KERNELS
    return f"kernel_{isa}_unrolled" if unrolled else f"kernel_{isa}"


def kernel_rules(isas: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """{rule: flags} of the kernels."""
    rules = {}
    for isa in isas:
        flags = (*KERNEL_MATH, *KERNEL_WARNINGS, f"-DFASTCONV_ISA={isa}", *KERNEL_ISAS[isa])
        if isa == "scalar":
            rules["kernel_scalar"] = (*(BASELINE if len(isas) > 1 else UNROLLED), *flags)
        else:
            rules[f"kernel_{isa}"] = (*OPTIMISED, *flags)
            rules[f"kernel_{isa}_unrolled"] = (*UNROLLED, *flags)
    return rules


def defines(plan: Plan) -> tuple[str, ...]:
    """FASTCONV_HAVE_AVX2, ..., FASTCONV_WITH_CUDA: tells every file which kernels exist beside the plain ones."""
    isas = tuple(f"-DFASTCONV_HAVE_{isa.upper()}" for isa in plan.isas if isa != "scalar")
    return (*isas, "-DFASTCONV_WITH_CUDA") if plan.cuda else isas


# The CUDA kernels as C++, for the emulator. -O2 runs faster there than -O3.
SIMULATED = ("-std=c++17", "-O2", "-DFASTCONV_SIMT", "-x", "c++")
# The same with a call before every access (csrc/simt/checker/hooks.cpp). Vectorised accesses would be counted as one.
CHECKED = ("-std=c++17", "-g", "-DFASTCONV_SIMT", "-DFASTCONV_SIMT_CHECKED", "-x", "c++")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
# Of core, what names the CPU's rows, which the emulator's own programs do not hold.
BOUND_TO_CPU = ("table", "selector")
INSTRUMENTED = (
    *CHECKED, "-O1", "-fno-tree-vectorize", "-fsanitize=thread", "--param", "tsan-instrument-func-entry-exit=0",
)  # fmt: skip


# Not on the way of a call: -O1 takes a fifth less time to compile.
COLD_BINDINGS = ("module", "schema", "testing")


def bindings_flags(plan: Plan) -> tuple[str, ...]:
    flags = ["-std=c++20", "-O2", "-DTORCH_EXTENSION_NAME=_C"]
    flags.append(f"-D_GLIBCXX_USE_CXX11_ABI={int(plan.cxx11_abi)}")
    # Compiled with OpenMP so that at::parallel_for's pragmas count; not linked with it (see `render`).
    flags.append("-fopenmp")
    for path in (*plan.torch_includes, plan.python_include, *(plan.cuda_includes if plan.cuda else ())):
        flags += ["-isystem", path]
    return tuple(flags)


def nvcc_flags(plan: Plan) -> tuple[str, ...]:
    flags = ["-std=c++17", "-O3", "-DNDEBUG", "-Icsrc"]
    flags += ["-Xcompiler=-fPIC,-fvisibility=hidden", f"-ccbin={plan.compiler}"]
    for arch in plan.archs:
        flags += arch.gencode
    return tuple(flags)


def link_flags(plan: Plan) -> tuple[str, ...]:
    """No -fopenmp: torch has loaded its own OpenMP runtime, and a second one would run twice the threads."""
    flags = [f"-L{plan.torch_lib}", "-ltorch_python", "-ltorch", "-ltorch_cpu", "-lc10"]
    if plan.cuda:
        flags += ["-ltorch_cuda", "-lc10_cuda", plan.cudart]
    return tuple(flags)


def _command(words: Sequence[str]) -> str:
    return " ".join(shlex.quote(word) for word in words).replace("$", "$$")


def _path(path: str) -> str:
    return path.replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def _object(plan: Plan, source: str, isa: str = "") -> str:
    path = PurePosixPath(source)
    path = path.relative_to("csrc") if path.parts[0] == "csrc" else path
    return f"{plan.folder}/obj/{path.parent}/{isa + '/' if isa else ''}{path.name}.o"


def compile_edges(plan: Plan) -> list[tuple[str, str, str]]:
    """(rule, object, source) of every compilation, the longest first: ninja starts them in this order.

    A kernel with AVX-512 takes up to 11 s, bindings up to 13 s, a file of core or cpu 1 s: with the short ones last,
    all jobs end at about the same time.
    """
    edges = [("nvcc", _object(plan, s), s) for s in plan.sources.cuda] if plan.cuda else []
    for isa in reversed(plan.isas):
        edges += [(kernel_rule(isa, s), _object(plan, s, isa), s) for s in plan.sources.kernels]
    edges += [
        ("bindings_cold" if PurePosixPath(s).stem in COLD_BINDINGS else "bindings", _object(plan, s), s)
        for s in plan.sources.bindings
        if plan.cuda or not PurePosixPath(s).name.startswith("cuda")
    ]
    edges += [("simulated", _object(plan, s, "simulated"), s) for s in (*plan.sources.cuda, *plan.sources.simt)]
    edges += [("cpu", _object(plan, s), s) for s in plan.sources.cpu]
    return edges + [("core", _object(plan, s), s) for s in plan.sources.core]


def checked_edges(plan: Plan) -> list[tuple[str, str, str]]:
    """(rule, object, source) of the checked emulator, but for the objects it shares with the extension."""
    kernels = [("instrumented", s) for s in (*plan.sources.cuda, *plan.sources.planted)]
    runtime = [("checked", s) for s in (*plan.sources.simt, *plan.sources.checker)]
    return [(rule, _object(plan, s, "checked"), s) for rule, s in (*kernels, *runtime)]


def sanitized_edges(plan: Plan) -> list[tuple[str, str, str]]:
    """(rule, object, source) of the emulator under sanitizers: everything that it is made of."""
    s = plan.sources
    core = tuple(source for source in s.core if PurePosixPath(source).stem not in BOUND_TO_CPU)
    every = (*s.cuda, *s.simt, *core, *s.sanitized)
    return [("sanitized", _object(plan, source, "sanitized"), source) for source in every]


def render(plan: Plan) -> str:
    common = (plan.compiler, *WARNINGS, *COMMON, *defines(plan))
    plain = (*common, "-std=c++17")
    rules = {
        "core": (*plain, "-O2"),
        "cpu": (*plain, "-O2", *KERNEL_MATH),
        "bindings": (*common, *bindings_flags(plan)),
        "bindings_cold": (*common, *bindings_flags(plan), "-O1"),
        "simulated": (*common, *SIMULATED),
        "checked": (*common, *CHECKED, "-O2"),
        "instrumented": (*common, *INSTRUMENTED),
        "sanitized": (*common, *SIMULATED, *SANITIZERS, "-O1", "-g", "-fno-omit-frame-pointer"),
    }
    rules.update({name: (*plain, *flags) for name, flags in kernel_rules(plan.isas).items()})
    if plan.nvcc:
        rules["nvcc"] = (plan.nvcc, *nvcc_flags(plan))

    lines = ["ninja_required_version = 1.5", f"builddir = {_path(plan.folder)}", ""]
    for name, words in rules.items():
        extra = () if name == "nvcc" else plan.cxxflags
        lines += [
            f"rule {name}",
            f"  command = {_command((*words, *extra))} -MD -MF $out.d -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            f"  description = {name} $in",
            "",
        ]
    lines += [
        "rule link",
        f"  command = {_command((plan.compiler, '-shared'))} $in -o $out "
        + _command((*link_flags(plan), *plan.ldflags)),
        "  description = link $out",
        "",
        "rule link_sanitized",
        f"  command = {_command((plan.compiler, *SANITIZERS))} $in -o $out -lpthread",
        "  description = link $out",
        "",
        "rule link_checked",
        f"  command = {_command((plan.compiler, '-shared'))} $in -o $out -lpthread -ldl",
        "  description = link $out",
        "",
    ]
    edges = compile_edges(plan)
    lines += [f"build {_path(obj)}: {rule} {_path(source)}" for rule, obj, source in edges]
    lines += ["", f"build {_path(plan.output)}: link {' '.join(_path(obj) for _, obj, _ in edges)}"]
    checked = checked_edges(plan)
    lines += [f"build {_path(obj)}: {rule} {_path(source)}" for rule, obj, source in checked]
    shared = [_object(plan, s) for s in plan.sources.core if PurePosixPath(s).stem not in BOUND_TO_CPU]
    # The plain objects come first: of templates that both hold, the linker takes those without hooks.
    objects = [*shared, *(obj for rule, obj, _ in sorted(checked) if rule == "checked")]
    objects += [obj for rule, obj, _ in checked if rule == "instrumented"]
    lines += ["", f"build {_path(plan.checked_output)}: link_checked {' '.join(map(_path, objects))}"]
    sanitized = sanitized_edges(plan)
    lines += [f"build {_path(obj)}: {rule} {_path(source)}" for rule, obj, source in sanitized]
    lines += ["", f"build {_path(plan.sanitized_output)}: link_sanitized {' '.join(_path(o) for _, o, _ in sanitized)}"]
    lines += [f"default {_path(plan.output)}", ""]
    return "\n".join(lines)
