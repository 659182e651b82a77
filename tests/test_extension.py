"""The extension is there and is what was built; the loader and the doctor when it is not."""

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

import fastconv
from fastconv import _extension
from fastconv.doctor import cpu_features

ROOT = Path(__file__).resolve().parent.parent

# --- loader ----------------------------------------------------------------------------------------------

SUFFIXES = [".cpython-311-x86_64-linux-gnu.so", ".abi3.so", ".so"]
OTHER = "_C.cpython-310-x86_64-linux-gnu.so"


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
    (dict(info={"torch": "2.12.1+cpu"}), "built for torch 2.12.1+cpu, this is torch 2.13.0+cpu; rebuild: "),
    (dict(info={"torch": "2.13.0+cu130"}), "built for torch 2.13.0+cu130, this is torch 2.13.0+cpu; rebuild: "),
    (dict(info={"fastconv": "0.0.1"}), f"built from fastconv 0.0.1, this is {fastconv.__version__}; rebuild: "),
    (dict(info={"extension": OTHER, "python": "3.10.2"}), "built for Python 3.10.2, this is Python"),
    (dict(library=OTHER), f"built for another Python ({OTHER}); rebuild: "),
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
