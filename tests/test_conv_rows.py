"""Every convolution row of the table, on every ISA, pass, dtype and layout, against torch in float64.

Operands lie in guarded, poisoned memory (kernels.py), so values that were never written and writes outside show.
"""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from kernels import DTYPES, PASSES, Operand, check_conv, does, rows

from fastconv import _C

ROWS = [row["name"] for row in rows()]

# h != w, primes, odd channels, all parameters asymmetric somewhere; few enough to run for all rows, ISAs and dtypes.
SHAPES = [
    "n2c5h9w11 k7r3s3 st1 pd1 dl1 g1",
    "n1c3h13w10 k33r5s2 st2x1 pd0,1,2,3 dl1 g1",
    "n2c6h11w7 k8r3s2 st1x2 pd2x1 dl2x3 g2",
    "n1c17h7w19 k34r1s1 st1 pd0 dl1 g1",
    "n3c4h6w9 k6r1s1 st3x2 pd1x0 dl1 g2",
    "n2c7h8w13 k7r3s3 st2 pd1 dl1 g7",
    "n1c2h5w31 k4r2s7 st1x3 pd3,0,0,2 dl1x2 g1",
    "n1c40h6w6 k35r3s3 st1 pd1 dl1 g1",
    "n2c1h1w1 k1r1s1 st1 pd0 dl1 g1",
    "n1c18h16w15 k48r3s3 st1 pd1,0,0,1 dl1 g1",
]


@pytest.fixture(params=_C.cpu_isas())
def isa(request):
    before = _C.cpu_isa()
    _C.set_cpu_isa(request.param)
    yield request.param
    _C.set_cpu_isa(before)


def row_named(name):
    return next(row for row in rows() if row["name"] == name)


def check_if_supported(text, name, **how):
    """Runs a row unless it says in words why not; returns whether it ran."""
    answer = next(a for a in _C.explain(text) if a["name"] == name and a["device"] == "cpu")
    if not answer["ok"]:
        assert len(answer["reason"]) > 8
        return False
    check_conv(text, name, **how)
    return True


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ROWS)
def test_dtypes_and_passes(name, dtype, isa):
    ran = 0
    for pass_ in PASSES:
        if not does(row_named(name), pass_, dtype):
            continue
        epilogue = {"fwd": " bias relu", "grad_input": " relu", "grad_weight": " bias relu"}[pass_]
        for i, shape in enumerate(SHAPES):
            layout = ("nchw", "nhwc")[i % 2]
            ran += check_if_supported(f"conv {shape} {dtype} {layout} {pass_}{epilogue}", name, seed=i)
    listed = any(does(row_named(name), pass_, dtype) for pass_ in PASSES)
    assert bool(ran) == listed, f"{name} lists {dtype} but ran none of the shapes"


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("name", ROWS)
def test_layouts_threads_and_prepacked_filters(name, pass_, isa):
    if not does(row_named(name), pass_, "f32"):
        assert pass_ not in row_named(name)["passes"]
        return
    flags = ["", " bias", " bias relu", " relu res"] if pass_ == "fwd" else ["", " relu"]
    flags += [" bias"] if pass_ == "grad_weight" else []
    ran = 0
    for i, shape in enumerate(SHAPES):
        for j, layout in enumerate(("nchw", "nhwc", "x:nhwc w:nchw y:nchw", "x:nchw w:nhwc y:nhwc")):
            text = f"conv {shape} f32 {layout} {pass_}{flags[(i + j) % len(flags)]}"
            ran += check_if_supported(text, name, threads=1 + (i + j) % 3, prepacked=(i + j) % 2 == 1, seed=i)
    assert ran


@pytest.mark.parametrize("name", ROWS)
def test_integer_values_give_exact_sums(name, isa):
    """Sums of small integers have no rounding: compared to the last bit. Winograd's transforms do round."""
    if name == "winograd":
        return
    for i, shape in enumerate(SHAPES):
        for pass_ in PASSES:
            if does(row_named(name), pass_, "f32"):
                text = f"conv {shape} f32 nchw {pass_}"
                if check_if_supported(text, name, exact=True, seed=i):
                    check_if_supported(text.replace("f32", "f64"), name, exact=True, seed=i)


def spaced(sizes, order, gaps):
    """Strides of a view: dimensions laid out in some order with unused elements between."""
    strides, step = [0] * 4, 1
    for dim, gap in zip(order, gaps):
        strides[dim] = step
        step *= sizes[dim] + gap
    return strides


@st.composite
def problems(draw):
    small = st.integers(1, 4)
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    p = dict(
        n=draw(st.integers(1, 3)), c=groups * draw(st.integers(1, 20)), k=groups * draw(st.integers(1, 36)),
        r=draw(small), s=draw(st.integers(1, 6)), stride_h=draw(small), stride_w=draw(small),
        dilation_h=draw(st.integers(1, 3)), dilation_w=draw(st.integers(1, 3)), groups=groups,
        h=draw(st.integers(1, 15)), w=draw(st.integers(1, 30)),
        dtype=draw(st.sampled_from(["f32", "f32", "f64", "f16", "bf16", "i32"])),
    )  # fmt: skip
    for side in ("top", "left", "bottom", "right"):
        p[f"pad_{side}"] = draw(st.integers(0, 3))
    assume(p["h"] + p["pad_top"] + p["pad_bottom"] > p["dilation_h"] * (p["r"] - 1))
    assume(p["w"] + p["pad_left"] + p["pad_right"] > p["dilation_w"] * (p["s"] - 1))
    p["pass"] = draw(st.sampled_from(["forward", "grad_input", "grad_weight"]))
    p["activation"] = draw(st.sampled_from(["none", "relu"]))
    p["bias"] = p["pass"] != "grad_input" and draw(st.booleans())
    p["residual"] = p["pass"] == "forward" and draw(st.booleans())
    sizes = {"x_strides": (p["n"], p["c"], p["h"], p["w"])}
    sizes["weight_strides"] = (p["k"], p["c"] // groups, p["r"], p["s"])
    facts = _C.problem_facts(_C.problem_text(dict(p, kind="conv")))
    sizes["y_strides"] = sizes["aux_strides"] = (p["n"], p["k"], facts["p"], facts["q"])
    for name, dims in sizes.items():
        if name != "aux_strides" or p["residual"] or (p["activation"] != "none" and p["pass"] != "forward"):
            order = draw(st.permutations(range(4)))
            p[name] = spaced(dims, order, draw(st.tuples(*[st.integers(0, 2)] * 4)))
    return _C.problem_text(dict(p, kind="conv"))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(text=problems(), threads=st.integers(1, 3), prepacked=st.booleans(), isa_index=st.integers(0, 2))
def test_any_problem_in_any_layout(text, threads, prepacked, isa_index):
    before = _C.cpu_isa()
    _C.set_cpu_isa(_C.cpu_isas()[isa_index % len(_C.cpu_isas())])
    try:
        assert check_if_supported(text, "direct", threads=threads, prepacked=prepacked)  # takes everything
        for name in ROWS:
            if name != "direct":
                check_if_supported(text, name, threads=threads, prepacked=prepacked)
    finally:
        _C.set_cpu_isa(before)


@pytest.mark.parametrize("name", ROWS)
def test_nan_and_infinity_reach_the_output(name):
    """NaN in the input shows in every output whose window holds it, ReLU or not; others stay finite unless Winograd."""
    text = "conv n1c32h10w12 k32r3s3 st1 pd1 dl1 g1 f32 nchw fwd relu"
    if name == "depthwise":
        text = text.replace(" g1 ", " g32 ")
    p = _C.parse_problem(text)
    x = torch.ones(1, 32, 10, 12)
    x[0, 3, 4, 5] = float("nan")
    weight = torch.ones(32, 32 // p["groups"], 3, 3)
    y = Operand((1, 32, 10, 12), p["y_strides"], torch.float32)
    addresses = {"x": x.data_ptr(), "weight": weight.data_ptr(), "y": y.address}
    _C.run_row(text, name, addresses)
    channels = slice(3, 4) if name == "depthwise" else slice(None)
    assert y.view[0, channels, 3:6, 4:7].isnan().all()
    assert y.view[0, :, 8:, 10:].isfinite().all()


def test_a_planted_bug_is_seen():
    """The checks can fail: a wrong stride in the text makes a kernel read and write elsewhere."""
    text = "conv n1c2h4w4 k2r3s3 st1 pd1 dl1 g1 f32 nchw fwd"
    p = _C.parse_problem(text)
    x, weight = torch.randn(1, 2, 4, 4), torch.randn(2, 2, 3, 3)
    y = Operand((1, 2, 4, 4), p["y_strides"], torch.float32)
    shifted = {"x": x.data_ptr(), "weight": weight.data_ptr(), "y": y.address + 4}
    _C.run_row(text, "direct", shifted)
    assert not y.untouched_outside()
    assert not bool(torch.isfinite(y.view).all())
