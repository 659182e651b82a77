"""On which GPUs the CUDA rows were seen to be right: derived from benchmarks/results/<gpu>/verified.json, never typed.

`make gpu-check` writes that file: {"gpu": name, "rows": {row: hash of its sources}}. A row whose sources have changed since
is stale until hardware has seen it again. Without any such file, a row is verified on the emulator alone.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

EMULATOR = "emulator"


def gpu_rows(root: Path) -> dict[str, str]:
    """{row: its main file below csrc/} of csrc/core/algorithms.inc."""
    text = (root / "csrc/core/algorithms.inc").read_text()
    entries = re.findall(r"FASTCONV_GPU_(?:CONV|POOL)_ROW\((\w+),.*?\"(cuda/[\w.]+)\"", text, re.S)
    return dict(entries)


def sources(root: Path, main: str) -> list[Path]:
    """The row's files below csrc/cuda: those whose names begin with the row's, all that they include, and the kernels
    that those declare."""
    stem = Path(main).stem
    waiting = sorted((root / "csrc/cuda").glob(f"{stem}*.cu"))
    found: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        waiting += [other for other in [path.with_suffix(".cu")] if other.is_file()]  # the kernels that a header declares
        for name in re.findall(r'^#include "([\w./]+)"', path.read_text(), re.M):
            included = (path.parent / name).resolve()
            if included.parent.name == "cuda" and included.is_file():
                waiting.append(path.parent / name)
    return sorted(found)


def source_hash(root: Path, main: str) -> str:
    """Of the contents of the row's files: any change counts."""
    total = hashlib.sha256()
    for path in sources(root, main):
        total.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()


def verified_on(root: Path) -> dict[str, str]:
    """{row: "emulator" | "emulator, NVIDIA H200" | "emulator, NVIDIA H200 (stale)"}"""
    rows = gpu_rows(root)
    hashes = {row: source_hash(root, main) for row, main in rows.items()}
    seen = {row: [EMULATOR] for row in rows}
    for path in sorted((root / "benchmarks/results").glob("*/verified.json")):
        record = json.loads(path.read_text())
        for row, recorded in record["rows"].items():
            if row in seen:
                seen[row].append(record["gpu"] if recorded == hashes[row] else f"{record['gpu']} (stale)")
    return {row: ", ".join(places) for row, places in seen.items()}
