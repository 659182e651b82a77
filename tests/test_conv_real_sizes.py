"""Real problem sizes (data/README.md): every row that supports one computes it right, in all three passes."""

import csv
import pathlib

import pytest
from kernels import PASSES, check_conv, rows

from fastconv import _C

DATA = pathlib.Path(__file__).parent / "data" / "conv2d_shapes.csv"


def problem_texts():
    with DATA.open(newline="") as file:
        for i, line in enumerate(csv.DictReader(file)):
            v = {key: int(value) for key, value in line.items() if key not in ("source", "name")}
            # The lists give no bottom and right padding: as much as the output size needs.
            bottom = (v["out_h"] - 1) * v["stride_h"] + v["dil_h"] * (v["r"] - 1) + 1 - v["h"] - v["pad_t"]
            right = (v["out_w"] - 1) * v["stride_w"] + v["dil_w"] * (v["s"] - 1) + 1 - v["w"] - v["pad_l"]
            fields = dict(
                kind="conv", n=min(v["n"], 2), c=v["c"], h=v["h"], w=v["w"], k=v["k"], r=v["r"], s=v["s"],
                stride_h=v["stride_h"], stride_w=v["stride_w"], pad_top=v["pad_t"], pad_left=v["pad_l"],
                pad_bottom=max(bottom, 0), pad_right=max(right, 0), dilation_h=v["dil_h"], dilation_w=v["dil_w"],
                groups=v["groups"], layout=("nchw", "nhwc")[i % 2],
                **{"pass": {"fwd": "forward"}.get(PASSES[i % 3], PASSES[i % 3])},
            )  # fmt: skip
            yield _C.problem_text(fields)


@pytest.mark.parametrize("text", sorted(set(problem_texts())))
def test_real_size(text):
    ran = 0
    for row in rows():
        answer = next(a for a in _C.explain(text) if a["name"] == row["name"] and a["device"] == "cpu")
        if answer["ok"]:
            check_conv(text, row["name"], threads=2)
            ran += 1
    assert ran >= 2  # direct and im2col take everything
