"""What nvcc makes of every CUDA kernel: registers, shared memory, stack, spills. Needs nvcc, no GPU.

    python -m build_tools.kernel_resources            compares with tests/data/kernel_resources.csv, says what changed
    python -m build_tools.kernel_resources --write    makes that file anew

The file belongs to one version of nvcc, named in its first line; other versions allocate registers differently.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from build_tools import facts
from build_tools.switches import SwitchError

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "tests/data/kernel_resources.csv"
ARCHS = ("sm_80", "sm_90")
COLUMNS = ("arch", "kernel", "registers", "shared_bytes", "stack_bytes", "spill_bytes")


def nvcc() -> tuple[str, str]:
    """(path, full version) of nvcc; SwitchError with the cure if there is none."""
    path, _ = facts.find_nvcc()
    if path is None:
        raise SwitchError("nvcc was not found: install the CUDA toolkit and put nvcc on PATH, or set CUDA_HOME")
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
    return path, re.search(r"V(\d+\.\d+\.\d+)", said).group(1)


def compile_one(source: str) -> list[dict]:
    """The kernels of one .cu file, for each of ARCHS. SwitchError, with nvcc's words, if it fails or warns."""
    path, _ = nvcc()
    with tempfile.TemporaryDirectory() as folder:
        command = [path, "-std=c++17", "-O3", "-DNDEBUG", "-Icsrc", "-Werror", "all-warnings"]
        for arch in ARCHS:
            command.append(f"-gencode=arch={arch.replace('sm', 'compute')},code={arch}")
        command += ["-Xptxas", "-v,-warn-spills,-warn-lmem-usage,-Werror", "-c", source, "-o", f"{folder}/x.o"]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0 or "warning" in done.stdout:
        complaints = [line for line in done.stdout.splitlines() if not line.startswith("ptxas info")]
        raise SwitchError(f"{source}:\n" + "\n".join(complaints))
    return parse(done.stdout)


def parse(said: str) -> list[dict]:
    """ptxas -v's lines as rows: of each kernel its properties, then what it uses."""
    kernels, names = [], []
    for line in said.splitlines():
        if found := re.search(r"Compiling entry function '(\w+)' for '(\w+)'", line):
            names.append(found.group(1))
            kernels.append(dict(arch=found.group(2), registers=0, shared_bytes=0, stack_bytes=0, spill_bytes=0))
        elif found := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            stack, stores, loads = map(int, found.groups())
            kernels[-1].update(stack_bytes=stack, spill_bytes=stores + loads)
        elif found := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            kernels[-1].update(registers=int(found.group(1)), shared_bytes=int(shared.group(1)) if shared else 0)
    plain = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    for row, name in zip(kernels, plain.splitlines()):
        row["kernel"] = _shorten(name)
    return kernels


def _shorten(name: str) -> str:
    """The kernel and its template arguments, without namespaces and parameters."""
    name = re.sub(r"\(anonymous namespace\)::|fastconv::cuda::|fastconv::|__nv_|^void ", "", name)
    name = name.replace("__half", "half")
    depth = 0
    for i, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0 and not name[i:].startswith("(int)"):
            return name[:i]
    return name


def measure() -> list[dict]:
    """Every kernel of every csrc/cuda/*.cu for every architecture, in order."""
    sources = facts.find_sources(ROOT).cuda
    with ThreadPoolExecutor(facts.core_count()) as pool:
        rows = [row for found in pool.map(compile_one, sources) for row in found]
    return sorted(rows, key=lambda row: (row["arch"], row["kernel"]))


def read() -> tuple[str, list[dict]]:
    """(version of nvcc, rows) of the committed table."""
    with open(TABLE, newline="") as file:
        version = file.readline().removeprefix("# nvcc ").strip()
        rows = [{k: v if k in ("arch", "kernel") else int(v) for k, v in row.items()} for row in csv.DictReader(file)]
    return version, rows


def write(version: str, rows: list[dict]) -> None:
    temporary = TABLE.with_name(f".{TABLE.name}.{os.getpid()}")
    with open(temporary, "w", newline="") as file:
        file.write(f"# nvcc {version}\n")
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, TABLE)


def differences(before: list[dict], now: list[dict]) -> list[str]:
    """What changed, a line each."""
    old, new = ({(row["arch"], row["kernel"]): row for row in rows} for rows in (before, now))
    lines = [f"{arch} {kernel}: gone" for arch, kernel in old.keys() - new.keys()]
    lines += [f"{arch} {kernel}: new, {new[arch, kernel]['registers']} registers" for arch, kernel in new.keys() - old.keys()]
    for key in old.keys() & new.keys():
        for column in COLUMNS[2:]:
            if old[key][column] != new[key][column]:
                lines.append(f"{key[0]} {key[1]}: {column} {old[key][column]} -> {new[key][column]}")
    return sorted(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="make the table anew")
    arguments = parser.parse_args()
    try:
        version, rows = nvcc()[1], measure()
    except SwitchError as error:
        sys.exit(f"\nfastconv: {error}\n")
    if arguments.write:
        write(version, rows)
        print(f"{TABLE.relative_to(ROOT)}: {len(rows)} kernels, nvcc {version}")
        return 0
    recorded, before = read()
    changed = differences(before, rows)
    print("\n".join(changed) or f"{len(rows)} kernels as recorded")
    if recorded != version:
        print(f"(recorded with nvcc {recorded}, this is {version})")
    return bool(changed)


if __name__ == "__main__":
    sys.exit(main())
