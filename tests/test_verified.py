"""verified_on is derived from recorded results and the hash of a row's sources."""

import json
import re
from pathlib import Path

import fastconv
from build_tools import verified
from fastconv import _C

ROOT = Path(__file__).resolve().parent.parent


def a_tree(tmp_path):
    (tmp_path / "csrc/core").mkdir(parents=True)
    (tmp_path / "csrc/cuda").mkdir()
    (tmp_path / "benchmarks/results/h200").mkdir(parents=True)
    (tmp_path / "csrc/core/algorithms.inc").write_text(
        'FASTCONV_GPU_CONV_ROW(direct, forward, floats, sm_75,\n  "sums",\n  "cuda/direct.cu", direct)\n'
        'FASTCONV_GPU_POOL_ROW(max_pool, forward, floats, sm_75, "windows", "cuda/max_pool.cu", max_pool)\n'
    )
    (tmp_path / "csrc/cuda/direct.cu").write_text('#include "direct.cuh"\n#include "../core/table.h"\n')
    (tmp_path / "csrc/cuda/direct_any.cu").write_text("// another form\n")
    (tmp_path / "csrc/cuda/direct.cuh").write_text("// the kernel\n")
    (tmp_path / "csrc/cuda/max_pool.cu").write_text("// windows\n")
    return tmp_path


def test_a_row_is_verified_where_it_ran_and_stale_after_a_change(tmp_path):
    root = a_tree(tmp_path)
    assert verified.verified_on(root) == {"direct": "emulator", "max_pool": "emulator"}
    record = {"gpu": "NVIDIA H200", "rows": {"direct": verified.source_hash(root, "cuda/direct.cu")}}
    (root / "benchmarks/results/h200/verified.json").write_text(json.dumps(record))
    assert verified.verified_on(root) == {"direct": "emulator, NVIDIA H200", "max_pool": "emulator"}
    for name in ("direct_any.cu", "direct.cuh"):
        before = (root / "csrc/cuda" / name).read_text()
        (root / "csrc/cuda" / name).write_text(before + "// changed\n")
        assert verified.verified_on(root)["direct"] == "emulator, NVIDIA H200 (stale)"
        (root / "csrc/cuda" / name).write_text(before)
    assert verified.verified_on(root)["direct"] == "emulator, NVIDIA H200"


def test_every_cuda_row_is_told_by_doctor():
    rows = {row["name"] for row in _C.algorithms() if row["device"] == "simulated"}
    assert rows == set(verified.gpu_rows(ROOT)) and rows
    for row, main in verified.gpu_rows(ROOT).items():
        assert ROOT / "csrc" / main in verified.sources(ROOT, main), row
    page = str(fastconv.doctor())
    for row in rows:
        assert re.search(rf"simulated {row} .*verified on: emulator", page), row
