"""The build's decisions as pure functions, the ninja file, the loader and the doctor, and what was built."""

import importlib.machinery
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from build_tools import environment, ninja_file, switches  # noqa: E402
from build_tools.ninja_file import Plan, Sources  # noqa: E402
from build_tools.switches import GIB, Arch, CudaFacts, SwitchError  # noqa: E402

import fastconv  # noqa: E402
from fastconv import _extension  # noqa: E402
from fastconv.doctor import cpu_features  # noqa: E402

# --- switches --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["2.10.0", "2.13.0+cpu", "2.14.0a0+git1234", "3.0"])
def test_torch_new_enough(version):
    assert switches.torch_switch(version, "python").line == f"Torch: {version}"


@pytest.mark.parametrize("version, words", [(None, "torch is not installed"), ("2.9.1+cu128", "torch 2.9.1+cu128 is too old")])
def test_torch_missing_or_old_names_the_cure(version, words):
    with pytest.raises(SwitchError, match=re.escape(words)) as caught:
        switches.torch_switch(version, "/usr/bin/python3")
    assert "/usr/bin/python3 -m pip install 'torch>=2.10'" in str(caught.value)
    assert "--no-build-isolation" in str(caught.value) and "make build" in str(caught.value)


def cuda(**changes):
    facts = dict(torch_version="2.13.0+cu130", torch_cuda="13.0", nvcc="/opt/cuda/bin/nvcc", nvcc_version="13.2", sources=3)
    return CudaFacts(**{**facts, **changes})


CPU_TORCH = dict(torch_version="2.13.0+cpu", torch_cuda=None)
OBSTACLES = [
    (CPU_TORCH, "torch is a CPU build", "lacks cuda_cmake_macros.h and libc10_cuda: install a CUDA build of torch"),
    (dict(nvcc=None, nvcc_version=None), "no nvcc found", "install the CUDA 13.0 toolkit and set CUDA_HOME"),
    (dict(nvcc_version="12.8"), "nvcc is CUDA 12.8, torch is CUDA 13.0", "set CUDA_HOME to a CUDA 13 toolkit"),
    (dict(sources=0), "this version has no CUDA kernels", "use a version that has them"),
]


@pytest.mark.parametrize("env", [{}, {"FASTCONV_CUDA": ""}, {"FORCE_CUDA": "0"}])
def test_cuda_unset_is_built_where_it_can_be(env):
    switch = switches.cuda_switch(env, cuda())
    assert switch.on and switch.line == "CUDA kernels: on (torch is CUDA 13.0, nvcc 13.2)"


@pytest.mark.parametrize("changes, why, cure", OBSTACLES)
def test_cuda_unset_says_why_it_is_off(changes, why, cure):
    switch = switches.cuda_switch({}, cuda(**changes))
    assert not switch.on and switch.line == f"CUDA kernels: off ({why})"


@pytest.mark.parametrize("variable", ["FASTCONV_CUDA", "FORCE_CUDA"])
@pytest.mark.parametrize("changes, why, cure", OBSTACLES)
def test_cuda_asked_for_and_impossible_is_an_error_with_the_cure(variable, changes, why, cure):
    with pytest.raises(SwitchError) as caught:
        switches.cuda_switch({variable: "1"}, cuda(**changes))
    message = str(caught.value)
    assert message.startswith(f"{variable}=1 asks for CUDA kernels, but {why}: ")
    assert cure in message and message.endswith(f"unset {variable}")


@pytest.mark.parametrize("variable", ["FASTCONV_CUDA", "FORCE_CUDA"])
def test_cuda_asked_for_and_possible_is_on(variable):
    assert switches.cuda_switch({variable: "1"}, cuda()).on


@pytest.mark.parametrize("facts", [cuda(), cuda(**CPU_TORCH)])
def test_cuda_refused_is_off(facts):
    assert switches.cuda_switch({"FASTCONV_CUDA": "0"}, facts).line == "CUDA kernels: off (FASTCONV_CUDA=0)"


@pytest.mark.parametrize("env, words", [
    ({"FASTCONV_CUDA": "yes"}, "FASTCONV_CUDA=yes is neither 0 nor 1"),
    ({"FORCE_CUDA": "on"}, "FORCE_CUDA=on is neither 0 nor 1"),
    ({"FASTCONV_CUDA": "0", "FORCE_CUDA": "1"}, "contradict each other"),
])  # fmt: skip
def test_cuda_nonsense_is_an_error(env, words):
    with pytest.raises(SwitchError, match=re.escape(words)):
        switches.cuda_switch(env, cuda())


@pytest.mark.parametrize("text, detected, expected", [
    ("", [], "sm_80 sm_90"),
    (" ; ", [], "sm_80 sm_90"),
    ("", [(9, 0), (9, 0), (8, 6)], "sm_86 sm_90"),
    ("9.0a;8.0", [(8, 6)], "sm_80 sm_90a"),
    ("8.0 8.6+PTX", [], "sm_80 sm_86+PTX"),
    ("10.0 9.0", [], "sm_90 sm_100"),
    ("8.0;8.0+PTX", [], "sm_80+PTX"),
    ("8.0+PTX;8.0", [], "sm_80+PTX"),
    ("Ampere;Hopper", [], "sm_80 sm_86+PTX sm_90+PTX"),
])  # fmt: skip
def test_arch_list(text, detected, expected):
    assert " ".join(a.text for a in switches.parse_archs(text, detected)) == expected


@pytest.mark.parametrize("text, known, words", [
    ("sm_80", (), "'sm_80', which is no architecture: write it as '8.0;9.0'"),
    ("8.0;fast", (), "'fast', which is no architecture"),
    ("8", (), "'8', which is no architecture"),
    ("8.0,9.0", (), "'8.0,9.0', which is no architecture"),
    ("7.0", (), "older than what fastconv's kernels run on: name architectures from 7.5 on"),
    ("9.9", ("100", "90", "90a", "80"), "which this nvcc cannot compile for: name one of 80, 90, 90a, 100"),
])  # fmt: skip
def test_arch_list_nonsense_is_an_error(text, known, words):
    with pytest.raises(SwitchError, match=re.escape(words)):
        switches.parse_archs(text, (), known)


def test_gencode():
    assert Arch("90a").gencode == ("-gencode=arch=compute_90a,code=sm_90a",)
    assert Arch("80", ptx=True).gencode[1] == "-gencode=arch=compute_80,code=compute_80"


@pytest.mark.parametrize("max_jobs, cores, free, expected", [
    (None, 2, 20 * GIB, "Jobs: 2 (2 cores)"),
    ("", 1, None, "Jobs: 1 (1 core)"),
    ("3", 8, 20 * GIB, "Jobs: 3 (MAX_JOBS=3)"),
    ("8", 2, 5 * GIB, "Jobs: 2 (MAX_JOBS=8, capped: 5.0 GiB free at 2 GiB a job)"),
    (None, 16, 4 * GIB, "Jobs: 2 (16 cores, capped: 4.0 GiB free at 2 GiB a job)"),
    (None, 2, GIB // 2, "Jobs: 1 (2 cores, capped: 0.5 GiB free at 2 GiB a job)"),
])  # fmt: skip
def test_jobs(max_jobs, cores, free, expected):
    jobs, switch = switches.job_count(max_jobs, cores, free)
    assert switch.line == expected and str(jobs) == switch.value


@pytest.mark.parametrize("max_jobs", ["0", "-1", "two", "1.5"])
def test_jobs_nonsense_is_an_error(max_jobs):
    with pytest.raises(SwitchError, match="is no positive number"):
        switches.job_count(max_jobs, 2, None)


def test_isas_all():
    isas = switches.choose_isas("x86_64", "g++", lambda flags: None)
    assert isas.switch.line == "CPU ISAs: scalar avx2 avx512" and not isas.left_out


def test_isas_old_compiler_says_which_flag_it_refuses():
    isas = switches.choose_isas("x86_64", "old", lambda flags: "-mavx512bw" if "-mavx512bw" in flags else None)
    assert isas.switch.line == "CPU ISAs: scalar avx2 (avx512 left out: old refuses -mavx512bw)"


def test_isas_other_machine():
    isas = switches.choose_isas("aarch64", "g++", lambda flags: pytest.fail("no x86 flag is tried on this machine"))
    assert isas.compiled == ("scalar",)
    assert isas.left_out == dict.fromkeys(("avx2", "avx512"), "this machine is aarch64, not x86-64")


def test_openmp_refused_is_an_error_with_the_cure():
    assert switches.openmp_switch("g++", None).on
    with pytest.raises(SwitchError, match="cc refuses -fopenmp.*set CXX"):
        switches.openmp_switch("cc", "-fopenmp")


# --- ninja file ------------------------------------------------------------------------------------------


def plan(**changes):
    sources = Sources(
        core=("csrc/core/text.cpp",),
        cpu=("csrc/cpu/isa.cpp",),
        kernels=("csrc/cpu/kernels/direct.cpp",),
        bindings=("csrc/bindings/cpu.cpp", "csrc/bindings/cuda.cpp"),
        cuda=("csrc/cuda/direct.cu",),
    )
    facts = dict(
        folder="build/key", sources=sources, compiler="/usr/bin/g++", isas=("scalar", "avx2"),
        torch_includes=("/a b/include",), torch_lib="/a b/lib", python_include="/py", cxx11_abi=True,
    )  # fmt: skip
    return Plan(**{**facts, **changes})


CUDA_ON = dict(nvcc="/cuda/bin/nvcc", archs=(Arch("80"), Arch("90a", ptx=True)), cuda_includes=("/cuda/include",), cudart="/cuda/lib/libcudart.so.13")


def rules(text):
    return dict(re.findall(r"^rule (\w+)\n  command = (.*)$", text, re.M))


def test_ninja_file_compiles_kernels_once_for_each_isa():
    found = rules(ninja_file.render(plan()))
    assert "-DFASTCONV_ISA=avx2 -mavx2 -mfma -mf16c -mbmi2" in found["kernel_avx2"]
    assert "-DFASTCONV_ISA=scalar" in found["kernel_scalar"] and "-mavx" not in found["kernel_scalar"]
    edges = ninja_file.compile_edges(plan())
    assert ("kernel_avx2", "build/key/obj/cpu/kernels/avx2/direct.cpp.o", "csrc/cpu/kernels/direct.cpp") in edges
    assert len({obj for _, obj, _ in edges}) == len(edges)


def test_ninja_file_flags():
    found = rules(ninja_file.render(plan()))
    for name, command in found.items():
        assert "-ffast-math" not in command
        assert ("-fopenmp" in command) == (name == "bindings"), "a second OpenMP runtime must not be linked"
        assert ("/a b/include" in command) == (name == "bindings"), "only the bindings may see torch's headers"
        assert ("-mavx" in command) == (name == "kernel_avx2")
        assert ("-DFASTCONV_HAVE_AVX2" in command) == (name != "link") and "HAVE_AVX512" not in command
    assert "-isystem '/a b/include'" in found["bindings"] and "'-L/a b/lib'" in found["link"]
    assert "-std=c++17" in found["kernel_scalar"] and "-std=c++20" in found["bindings"]


def test_ninja_file_without_cuda_has_nothing_of_it():
    text = ninja_file.render(plan())
    assert "cuda" not in text.lower()


def test_ninja_file_with_cuda():
    text = ninja_file.render(plan(**CUDA_ON))
    found = rules(text)
    assert "csrc/bindings/cuda.cpp" in text and "csrc/cuda/direct.cu" in text
    assert "-DFASTCONV_WITH_CUDA" in found["bindings"] and "-isystem /cuda/include" in found["bindings"]
    assert "-ltorch_cuda -lc10_cuda /cuda/lib/libcudart.so.13" in found["link"]
    assert "code=sm_80 -gencode=arch=compute_90a,code=sm_90a -gencode=arch=compute_90a,code=compute_90a" in found["nvcc"]
    assert "/a b/include" not in found["nvcc"]


# --- the environment that make sets up -------------------------------------------------------------------


def test_requirements_file_is_readable_for_every_python():
    text = (ROOT / "requirements-dev.txt").read_text()
    old, new = environment.required(text, (3, 10)), environment.required(text, (3, 12))
    assert old.keys() == new.keys() and {"ninja", "pytest", "rich", "numpy"} <= new.keys()
    assert old["numpy"] != new["numpy"]
    with pytest.raises(ValueError, match="cannot read 'numpy>=2'"):
        environment.required("numpy>=2")


def test_lacking():
    have = {"pytest": (9, 2), "numpy": (1, 20), "rich": (15,)}.get
    names = ["pytest", "numpy", "rich", "hypothesis", "ninja"]
    assert environment.lacking(names, have, on_path=lambda _: None) == ["numpy", "hypothesis", "ninja"]
    assert environment.lacking(names, have, on_path=lambda _: "/usr/bin/ninja") == ["numpy", "hypothesis"]


def test_old_torch_is_not_used():
    assert environment.numbers("2.9.1+cu128") < environment.MIN_TORCH <= environment.numbers("2.10.0a0+git1")
    assert environment.MIN_TORCH == switches.MIN_TORCH


# --- loader ----------------------------------------------------------------------------------------------

SUFFIXES = [".cpython-311-x86_64-linux-gnu.so", ".abi3.so", ".so"]


def package(folder, info={}, library="_C.cpython-311-x86_64-linux-gnu.so"):
    """A package folder with a record of a build; info: changes to it, None: no record, text: written as it is."""
    if library:
        (folder / library).write_bytes(b"not opened")
    record = {
        "fastconv": fastconv.__version__,
        "torch": "2.13.0+cpu",
        "python": "3.11.7",
        "extension": "_C.cpython-311-x86_64-linux-gnu.so",
    }
    if info is not None:
        (folder / "_build_info.json").write_text(info if isinstance(info, str) else json.dumps({**record, **info}))
    return folder


def problem(folder):
    return _extension.find_problem(folder, "2.13.0+cpu", SUFFIXES)


def test_loader_finds_nothing_wrong_with_a_matching_build(tmp_path):
    assert problem(package(tmp_path)) is None


@pytest.mark.parametrize("arguments, words", [
    (dict(info={"torch": "2.12.1+cpu"}), "the extension was built for torch 2.12.1+cpu, this is torch 2.13.0+cpu; rebuild: "),
    (dict(info={"torch": "2.13.0+cu130"}), "built for torch 2.13.0+cu130, this is torch 2.13.0+cpu; rebuild: "),
    (dict(info={"fastconv": "0.0.1"}), f"built from fastconv 0.0.1, this is {fastconv.__version__}; rebuild: "),
    (dict(info={"extension": "_C.cpython-310-x86_64-linux-gnu.so", "python": "3.10.2"}), "built for Python 3.10.2, this is Python"),
    (dict(library="_C.cpython-310-x86_64-linux-gnu.so"), "another Python (_C.cpython-310-x86_64-linux-gnu.so); rebuild: "),
    (dict(library=None, info=None), "the extension is not built; build it: "),
    (dict(info=None), "_build_info.json is missing"),
    (dict(info="{"), "_build_info.json is damaged"),
    (dict(info="[]"), "_build_info.json is damaged"),
    (dict(info={"torch": None}), "_build_info.json is damaged"),
])  # fmt: skip
def test_loader_says_what_is_wrong_and_how_to_rebuild(tmp_path, arguments, words):
    message = problem(package(tmp_path, **arguments))
    assert message.startswith("fastconv: ") and words in message
    assert f"{sys.executable} -m pip install --no-build-isolation" in message


def test_rebuild_command_in_a_clone(tmp_path):
    (tmp_path / "setup.py").touch()
    command = _extension.rebuild_command(tmp_path / "fastconv")
    assert command == f"cd {tmp_path} && {sys.executable} setup.py build_ext --inplace"


def copied_package(folder):
    """fastconv's Python files without the extension."""
    ignore = shutil.ignore_patterns("_C.*", "_build_info.json", "__pycache__")
    return Path(shutil.copytree(ROOT / "fastconv", folder / "fastconv", ignore=ignore))


def run(folder, *arguments):
    environ = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


USE = """
import torch, fastconv, fastconv.functional as FF
print('imported', fastconv.doctor().ok)
try:
    FF.conv2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 1, 1))
except fastconv.ExtensionError as error:
    assert isinstance(error, ImportError)
    print('raised', error)
"""


def missing(folder):
    return "the extension is not built; build it: "


def other_torch(folder):
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    package(folder, {"extension": f"_C{suffix}", "torch": "2.12.1+cpu"}, f"_C{suffix}")
    return f"built for torch 2.12.1+cpu, this is torch {torch.__version__}; rebuild: "


def unloadable(folder):
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    package(folder, {"extension": f"_C{suffix}", "torch": str(torch.__version__)}, f"_C{suffix}")
    return "the extension does not load: "


@pytest.mark.parametrize("damage", [missing, other_torch, unloadable])
def test_without_a_usable_extension_import_and_doctor_work_and_use_raises(tmp_path, damage):
    words = damage(copied_package(tmp_path))
    page = run(tmp_path, "-m", "fastconv")
    assert page.returncode == 0, page.stdout
    assert words in page.stdout.split("\nproblems\n")[1] and f"{torch.__version__}" in page.stdout
    assert "Traceback" not in page.stdout and "algorithms" not in page.stdout

    use = run(tmp_path, "-c", USE)
    assert use.returncode == 0, use.stdout
    assert "imported False" in use.stdout
    assert re.search(r"raised fastconv: .*" + re.escape(words), use.stdout), use.stdout


# --- what was built --------------------------------------------------------------------------------------


def test_the_extension_is_there():
    """No test of this project may pass because the extension is missing and something else answered."""
    module = _extension.load()
    record = _extension.build_info()
    info = module.build_info()
    assert info["torch"] == str(torch.__version__).split("+")[0] == record["torch"].split("+")[0]
    assert list(info["cpu_isas"]) == record["isas"] and "scalar" in record["isas"]
    assert info["cuda"] == record["cuda"]
    assert _extension.load() is module and _extension.status() == (True, f"loaded from {module.__file__}")
    assert Path(module.__file__).parent == Path(fastconv.__file__).parent
    assert module.algorithms(), "the algorithm table is empty"


def test_doctor_reports_what_was_built():
    report = fastconv.doctor()
    assert report.ok, report
    record = _extension.build_info()
    page = str(report)
    for line in record["switches"]:
        name, value = line.split(": ", 1)
        assert report.sections["build switches"][name] == value and value in page
    module = _extension.load()
    isas = report.sections["CPU instruction sets"]
    assert isas["in use"] == module.cpu_isa() and isas["usable on this CPU"] == " ".join(module.cpu_isas())
    assert {f"{row['device']} {row['name']}" for row in module.algorithms()} == set(report.sections["algorithms"])


def test_doctor_reports_an_unusable_isa():
    environ = {**os.environ, "FASTCONV_CPU_ISA": "sse9"}
    command = [sys.executable, "-m", "fastconv"]
    page = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert page.returncode == 0 and "sse9 is not usable here" in page.stdout.split("\nproblems\n")[1], page


def test_cpu_features():
    assert cpu_features("processor : 0\nflags\t\t: fpu avx2 fma\n\nflags : other\n") == {"fpu", "avx2", "fma"}
    assert cpu_features("") == set()


def test_kernels_leak_no_symbol_of_their_isa():
    """Were one weak symbol (an inline function, a template) compiled with AVX, the linker could choose it for
    every file, and the library would die of an illegal instruction on a CPU without AVX."""
    record = _extension.build_info()
    objects = sorted((ROOT / record["folder"]).glob("obj/cpu/kernels/*/*.o"))
    assert {o.parent.name for o in objects} >= set(record["isas"]), "build in place first: make build"
    for path in objects:
        isa = path.parent.name
        for line in defined_symbols(path):
            assert f"fastconv::cpu::{isa}::" in line and " T " in line, f"{path.name} ({isa}) defines {line}"


def defined_symbols(path):
    command = ["nm", "-C", "--defined-only", "--extern-only", str(path)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def test_planted_leak_is_seen(tmp_path):
    source = tmp_path / "leak.cpp"
    source.write_text("#include <vector>\nint f(int n) { std::vector<int> v(n); v.push_back(n); return v[n]; }\n")
    subprocess.run([shutil.which("g++") or "c++", "-c", source, "-o", tmp_path / "leak.o"], check=True)
    assert any(" W " in line and "std::vector" in line for line in defined_symbols(tmp_path / "leak.o"))


# --- layers ----------------------------------------------------------------------------------------------

TORCH_HEADER = re.compile(r"^\s*#\s*include\s*[<\"]((?:torch|ATen|c10|caffe2|pybind11)/[^>\"]+|Python\.h)[>\"]", re.M)


def torch_includes(csrc):
    """'file: header' for every torch header that a folder of kernels includes."""
    found = []
    for folder in ("core", "cpu", "cuda", "simt"):
        for path in sorted((csrc / folder).rglob("*")):
            if path.suffix in (".h", ".cpp", ".cu", ".cuh", ".inc"):
                headers = TORCH_HEADER.findall(path.read_text())
                found += [f"{path.relative_to(csrc).as_posix()}: {header}" for header in headers]
    return found


def test_kernels_include_no_torch_header():
    assert (ROOT / "csrc/core").is_dir() and (ROOT / "csrc/cpu/kernels").is_dir()
    assert torch_includes(ROOT / "csrc") == []


@pytest.mark.parametrize("folder", ["core", "cpu", "cpu/kernels", "cuda", "simt"])
@pytest.mark.parametrize("header", ["torch/library.h", "ATen/Parallel.h", "c10/util/Half.h", "pybind11/pybind11.h"])
def test_planted_torch_header_is_seen(tmp_path, folder, header):
    csrc = tmp_path / "csrc"
    shutil.copytree(ROOT / "csrc/core", csrc / "core")
    (csrc / folder).mkdir(parents=True, exist_ok=True)
    (csrc / folder / "planted.h").write_text(f"#pragma once\n  # include <{header}>\n")
    assert torch_includes(csrc) == [f"{folder}/planted.h: {header}"]
