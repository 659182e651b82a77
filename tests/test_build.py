"""The build's decisions as pure functions, the ninja file, what make sets up, and which folders know torch."""

import re
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from build_tools import environment, facts, ninja_file, switches  # noqa: E402
from build_tools.ninja_file import Plan, Sources  # noqa: E402
from build_tools.switches import GIB, Arch, CudaFacts, SwitchError  # noqa: E402

# --- switches --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["2.10.0", "2.13.0+cpu", "2.14.0a0+git1234", "3.0"])
def test_torch_new_enough(version):
    assert switches.torch_switch(version, "python").line == f"Torch: {version}"


@pytest.mark.parametrize("version, words", [
    (None, "torch is not installed"),
    ("2.9.1+cu128", "torch 2.9.1+cu128 is too old"),
])  # fmt: skip
def test_torch_missing_or_old_names_the_cure(version, words):
    with pytest.raises(SwitchError, match=re.escape(words)) as caught:
        switches.torch_switch(version, "/usr/bin/python3")
    assert "/usr/bin/python3 -m pip install 'torch>=2.10'" in str(caught.value)
    assert "--no-build-isolation" in str(caught.value) and "make build" in str(caught.value)


def cuda(**changes):
    found = dict(torch_version="2.13.0+cu130", torch_cuda="13.0", nvcc="/cuda/bin/nvcc", nvcc_version="13.2", sources=3)
    return CudaFacts(**{**found, **changes})


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


@pytest.mark.parametrize("found", [cuda(), cuda(**CPU_TORCH)])
def test_cuda_refused_is_off(found):
    assert switches.cuda_switch({"FASTCONV_CUDA": "0"}, found).line == "CUDA kernels: off (FASTCONV_CUDA=0)"


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
    ("8.0a", (), "'8.0a', but variants 'a' begin at 9.0a: leave the letter off"),
    ("9.0f", (), "'9.0f', but variants 'f' begin at 10.0f: leave the letter off"),
    ("9.9", ("100", "90", "80"), "which this nvcc cannot compile for: name one of 80, 90, 100"),
])  # fmt: skip
def test_arch_list_nonsense_is_an_error(text, known, words):
    with pytest.raises(SwitchError, match=re.escape(words)):
        switches.parse_archs(text, (), known)


def test_arch_variants_are_known_by_their_base():
    assert [a.text for a in switches.parse_archs("9.0a+PTX;10.0f", (), ("90", "100"))] == ["sm_90a+PTX", "sm_100f"]


def test_gencode():
    assert Arch("90a").gencode == ("-gencode=arch=compute_90a,code=sm_90a",)
    assert Arch("80", ptx=True).gencode[1] == "-gencode=arch=compute_80,code=compute_80"


@pytest.fixture
def toolkit(tmp_path, monkeypatch):
    """A CUDA toolkit that only a wrapper on PATH leads to, and no NVIDIA wheels."""
    home = tmp_path / "cuda"
    for name in ("include/cuda_runtime_api.h", "lib64/libcudart.so.13"):
        (home / name).parent.mkdir(parents=True)
        (home / name).touch()
    wrapper = tmp_path / "bin/nvcc"
    wrapper.parent.mkdir()
    wrapper.write_text(f"#!/bin/sh\necho '#$ TOP={home}/bin/..'\necho 'Cuda tools, release 13.0, V13.0.88'\n")
    wrapper.chmod(0o755)
    (home / "bin").mkdir()
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setenv("PATH", str(wrapper.parent))
    monkeypatch.setattr(facts, "nvidia_wheels", list)
    return home


def test_the_toolkit_is_found_through_a_wrapper(toolkit):
    nvcc, version = facts.find_nvcc()
    assert Path(nvcc).parent == toolkit.parent / "bin" and version == "13.0"
    assert facts.cuda_runtime(nvcc, "13.0") == ((str(toolkit / "include"),), str(toolkit / "lib64/libcudart.so.13"))


def test_the_runtime_that_torch_loads_comes_first(toolkit, tmp_path, monkeypatch):
    wheel = tmp_path / "nvidia/cu13"
    (wheel / "lib").mkdir(parents=True)
    (wheel / "lib/libcudart.so.13").touch()
    monkeypatch.setattr(facts, "nvidia_wheels", lambda: [wheel])
    includes, library = facts.cuda_runtime(facts.find_nvcc()[0], "13.0")
    assert library == str(wheel / "lib/libcudart.so.13") and includes == (str(toolkit / "include"),)


def test_a_toolkit_without_the_runtime_is_an_error_with_the_cure(toolkit):
    with pytest.raises(SwitchError, match=r"libcudart.so.12 is neither in .*: install the CUDA 12.8 toolkit"):
        facts.cuda_runtime(facts.find_nvcc()[0], "12.8")


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
    fields = dict(
        folder="build/key", sources=sources, compiler="/usr/bin/g++", isas=("scalar", "avx2"),
        torch_includes=("/a b/include",), torch_lib="/a b/lib", python_include="/py", cxx11_abi=True,
    )  # fmt: skip
    return Plan(**{**fields, **changes})


CUDA_ON = dict(
    nvcc="/cuda/bin/nvcc",
    archs=(Arch("80"), Arch("90a", ptx=True)),
    cuda_includes=("/cuda/include",),
    cudart="/cuda/lib/libcudart.so.13",
)


def rules(text):
    return dict(re.findall(r"^rule (\w+)\n  command = (.*)$", text, re.M))


def test_ninja_file_compiles_kernels_once_for_each_isa():
    found = rules(ninja_file.render(plan()))
    assert "-DFASTCONV_ISA=avx2 -mavx2 -mfma -mf16c -mbmi2" in found["kernel_avx2"]
    assert "-DFASTCONV_ISA=scalar" in found["kernel_scalar"] and "-mavx" not in found["kernel_scalar"]
    edges = ninja_file.compile_edges(plan())
    assert ("kernel_avx2", "build/key/obj/cpu/kernels/avx2/direct.cpp.o", "csrc/cpu/kernels/direct.cpp") in edges
    assert len({obj for _, obj, _ in edges}) == len(edges)


def test_ninja_file_optimises_by_what_a_kernel_needs():
    names = {f"csrc/cpu/kernels/{name}" for name in ninja_file.UNROLLED_KERNELS}
    assert names < set(facts.find_sources(ROOT).kernels)
    found = rules(ninja_file.render(plan()))
    assert " -O2 " in found["kernel_avx2"] and " -O3 " in found["kernel_avx2_unrolled"]
    assert ninja_file.kernel_rule("avx2", "csrc/cpu/kernels/max_pool.cpp") == "kernel_avx2_unrolled"
    assert ninja_file.kernel_rule("avx2", "csrc/cpu/kernels/im2col.cpp") == "kernel_avx2"
    assert ninja_file.kernel_rule("scalar", "csrc/cpu/kernels/max_pool.cpp") == "kernel_scalar"
    assert " -O1 " in found["kernel_scalar"]
    alone = rules(ninja_file.render(plan(isas=("scalar",))))
    assert " -O3 " in alone["kernel_scalar"], "the only kernels of a machine that is not x86-64"


def test_ninja_file_flags():
    found = rules(ninja_file.render(plan()))
    for name, command in found.items():
        assert "-ffast-math" not in command
        assert ("-fopenmp" in command) == (name in ("bindings", "bindings_cold")), "a second OpenMP runtime must not be linked"
        assert ("/a b/include" in command) == (name in ("bindings", "bindings_cold")), "only the bindings may see torch's headers"
        assert ("-mavx" in command) == name.startswith("kernel_avx2")
        assert ("-DFASTCONV_HAVE_AVX2" in command) == (not name.startswith("link"))
        assert "HAVE_AVX512" not in command
    assert "-isystem '/a b/include'" in found["bindings"] and "'-L/a b/lib'" in found["link"]
    assert "-std=c++17" in found["kernel_scalar"] and "-std=c++20" in found["bindings"]


def test_ninja_file_without_cuda_has_nothing_of_it():
    text = ninja_file.render(plan())
    for word in ("nvcc", "FASTCONV_WITH_CUDA", "csrc/bindings/cuda.cpp", "c10_cuda", "cudart"):
        assert word not in text


def test_ninja_file_with_cuda():
    text = ninja_file.render(plan(**CUDA_ON))
    found = rules(text)
    assert "csrc/bindings/cuda.cpp" in text and "csrc/cuda/direct.cu" in text
    assert "-DFASTCONV_WITH_CUDA" in found["bindings"] and "-isystem /cuda/include" in found["bindings"]
    assert "-ltorch_cuda -lc10_cuda /cuda/lib/libcudart.so.13" in found["link"]
    assert "-gencode=arch=compute_80,code=sm_80 -gencode=arch=compute_90a,code=sm_90a " in found["nvcc"]
    assert "-gencode=arch=compute_90a,code=compute_90a" in found["nvcc"]
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
