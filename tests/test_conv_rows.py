"""Every convolution row of the table, on every ISA, pass, dtype and layout, against torch in float64.

Operands lie in guarded, poisoned memory (kernels.py), so values that were never written and writes outside show.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from kernels import ACTIVATIONS, DTYPES, PASSES, Operand, activate, check_conv, does, rows

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
        epilogue = {"fwd": " bias relu", "grad_input": " bias relu", "grad_weight": " bias relu"}[pass_]
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
    flags = {
        "fwd": ["", " bias", " scale bias relu", " relu res", " bias gelu", " scale bias elu:0.5 res", " scale relu res"],
        "grad_input": ["", " relu", " bias", " bias tanh", " leaky_relu:0.2"],
        "grad_weight": ["", " relu", " bias", " sigmoid"],
    }[pass_]
    ran = 0
    for i, shape in enumerate(SHAPES):
        for j, layout in enumerate(("nchw", "nhwc", "x:nhwc w:nchw y:nchw", "x:nchw w:nhwc y:nhwc")):
            text = f"conv {shape} f32 {layout} {pass_}{flags[(i + j) % len(flags)]}"
            ran += check_if_supported(text, name, threads=1 + (i + j) % 3, prepacked=(i + j) % 2 == 1, seed=i)
    assert ran


POOLED = [  # output sizes of every remainder modulo the tiles' sizes, channels and filters of no vector's length
    "n2c5h9w11 k7r3s3 st1 pd1 dl1 g1",
    "n1c17h8w13 k34r3s3 st1 pd1 dl1 g1",
    "n1c33h14w18 k16r3s3 st1 pd0,1,1,0 dl1 g1",
    "n1c8h17w40 k48r3s3 st1 pd1 dl1 g2",
    "n2c4h10w7 k32r5s5 st1 pd2 dl1 g1",
    "n1c3h4w4 k1r3s3 st1 pd0 dl1 g1",
]


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("name", ROWS)
def test_fused_max_pool(name, dtype, isa):
    ran = 0
    layouts = ("nchw", "nhwc", "x:nhwc w:nchw y:nchw", "x:nchw w:nhwc y:nhwc")
    flags = ["", " bias relu", " scale bias relu", " bias gelu", " tanh", " bias"]
    for i, shape in enumerate(POOLED):
        for j, layout in enumerate(layouts):
            for accuracy in ("", " acc:fast", " acc:fastest"):
                text = f"conv {shape} maxpool2 {dtype} {layout} fwd{flags[(i + j) % len(flags)]}{accuracy}"
                ran += check_if_supported(text, name, seed=i, threads=1 + j % 2, prepacked=j % 2 == 1)
    row = row_named(name)
    assert bool(ran) == (row["max_pools"] and dtype in row["dtypes"])


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_fused_max_pool_chooses_as_torchs(layout, isa):
    """NaN wins over infinities at each of a window's four places: sums of 0, 1 and -1, exact in F(2x2,3x3), times inf."""
    text = f"conv n1c16h16w18 k16r3s3 st1 pd1 dl1 g1 maxpool2 f32 {layout} fwd scale"
    p = _C.parse_problem(text)
    values = torch.randint(-1, 2, (1, 16, 16, 18), generator=torch.Generator().manual_seed(0)).float()
    weight = torch.zeros(16, 16, 3, 3)
    weight[:, :, 1, 1] = torch.eye(16)
    operands = {
        "x": Operand(values.shape, p["x_strides"], torch.float32, values),
        "weight": Operand(weight.shape, p["weight_strides"], torch.float32, weight),
        "scale": Operand((16,), (1,), torch.float32, torch.full((16,), math.inf)),
        "y": Operand((1, 16, 8, 9), p["y_strides"], torch.float32),
    }
    _C.run_row(text, "winograd", {name: o.address for name, o in operands.items()})
    expected = F.max_pool2d(values * math.inf, 2)
    assert expected.isnan().any() and not expected.isnan().all()
    assert torch.equal(operands["y"].view.nan_to_num(7.0), expected.nan_to_num(7.0))


@pytest.mark.parametrize("word", ACTIVATIONS)
@pytest.mark.parametrize("name", ROWS)
def test_activations(name, word, isa):
    """Forward with bias and residual, and the gradients from the output."""
    ran = 0
    for i, shape in enumerate(SHAPES[0:8:7] + SHAPES[1:6:2] + SHAPES[9:]):
        for j, pass_ in enumerate(PASSES):
            if pass_ != "fwd" and ACTIVATIONS[word][1] is None:
                continue
            dtype, layout = ("f32", "f64", "f32", "f16", "bf16")[(i + j) % 5], ("nchw", "nhwc")[(i + j // 2) % 2]
            bias, residual = " bias" * ((i + j) % 2), " res" * (pass_ == "fwd" and i % 3 == 1)
            text = f"conv {shape} {dtype} {layout} {pass_}{bias} {word}{residual}"
            ran += check_if_supported(text, name, seed=i, threads=1 + i % 2)
    assert ran


# Sums that an activation may meet, and neighbours of its corners.
SUMS = [0.0, -0.0, math.nan, math.inf, -math.inf, 88.8, -88.8, 104.1, -104.1, 1e30, -1e30, 1e-40, -1e-40, 3, -3, 6, 6.5]


@pytest.mark.parametrize("word", ACTIVATIONS)
@pytest.mark.parametrize("name", ROWS)
def test_activations_of_special_sums(name, word, isa):
    """NaN, infinities, what overflows an exponential, and a grid of ordinary numbers, as residuals of zero sums.

    The error of each value is bounded, not of the largest. silu, gelu and hardswish of -inf are 0, their limit, where
    torch gives NaN.
    """
    groups = 32 if name == "depthwise" else 1
    for dtype, layout in (("f32", "nchw"), ("f32", "nhwc"), ("f64", "nhwc"), ("f16", "nchw"), ("bf16", "nhwc")):
        text = f"conv n1c32h9w13 k32r3s3 st1 pd1 dl1 g{groups} {dtype} {layout} fwd {word} res"
        if not does(row_named(name), "fwd", dtype):
            continue
        p, t = _C.parse_problem(text), DTYPES[dtype]
        values = torch.cat([torch.tensor(SUMS, dtype=torch.float64), torch.linspace(-21, 21, 32 * 9 * 13 - len(SUMS))])
        sizes = (1, 32, 9, 13)
        residual = Operand(sizes, p["aux_strides"], t, values.view(sizes))
        x, y = Operand(sizes, p["x_strides"], t, torch.zeros(sizes)), Operand(sizes, p["y_strides"], t)
        weight = Operand((32, 32 // groups, 3, 3), p["weight_strides"], t, torch.zeros(32, 32 // groups, 3, 3))
        operands = {"x": x, "weight": weight, "y": y, "aux": residual}
        _C.run_row(text, name, {key: o.address for key, o in operands.items()})
        assert all(o.untouched_outside() for o in operands.values())
        sums = residual.view.double()
        expected = activate(sums, p)
        if p["activation"] in ("silu", "gelu", "hardswish"):
            expected[sums == -math.inf] = 0
        result, context = y.view.double(), f"{text} on {name}, {isa}"
        finite = expected.to(t).isfinite()
        assert torch.equal(result.isfinite(), finite), context
        assert torch.equal(result.isnan(), expected.isnan()), context
        infinite = ~finite & ~result.isnan()
        assert torch.equal(result[infinite], expected.to(t).double()[infinite]), context
        compute = torch.finfo(torch.float64 if dtype == "f64" else torch.float32).eps
        relative = p["activation"] not in ("silu", "gelu")  # whose tails are small differences, see vector_math.h
        size = expected.abs() if relative else expected.abs().clamp(min=1)
        allowed = 3 * compute * size + torch.finfo(t).eps * expected.abs() + torch.finfo(t).tiny
        assert bool(((result - expected).abs() <= allowed)[finite].all()), context


@pytest.mark.parametrize("word", [word for word, functions in ACTIVATIONS.items() if functions[1]])
@pytest.mark.parametrize("name", [name for name in ROWS if name != "winograd"])  # which spreads what is not finite
def test_gradients_from_special_outputs(name, word, isa):
    """grad_input of a 1x1 filter of ones is the masked grad_output, NaN and infinities and all.

    By torch's formulas in float64; its relu6 lets the gradient pass where the output is NaN in some lanes only.
    """
    groups = 32 if name == "depthwise" else 1
    for dtype, layout in (("f32", "nchw"), ("f32", "nhwc"), ("bf16", "nchw"), ("f64", "nhwc")):
        text = f"conv n3c{groups}h7w11 k{groups}r1s1 st1 pd0 dl1 g{groups} {dtype} {layout} grad_input {word}"
        if not does(row_named(name), "grad_input", dtype):
            continue
        p, t = _C.parse_problem(text), DTYPES[dtype]
        sizes = (3, groups, 7, 11)
        g = torch.Generator().manual_seed(0)
        values = torch.randn(sizes, generator=g, dtype=torch.float64)
        values.flatten()[: len(SUMS)] = torch.tensor(SUMS, dtype=torch.float64)
        output = Operand(sizes, p["aux_strides"], t, values)
        dy = Operand(sizes, p["y_strides"], t, torch.randn(sizes, generator=g))
        dx = Operand(sizes, p["x_strides"], t)
        weight = Operand((groups, 1, 1, 1), p["weight_strides"], t, torch.ones(groups, 1, 1, 1))
        operands = {"x": dx, "weight": weight, "y": dy, "aux": output}
        _C.run_row(text, name, {key: o.address for key, o in operands.items()})
        assert all(o.untouched_outside() for o in operands.values())
        y, given, a = output.view.double(), dy.view.double(), p["activation_parameter"]
        expected = {
            "relu": lambda: given.masked_fill(y <= 0, 0),
            "leaky_relu": lambda: torch.where(y > 0, given, a * given),
            "relu6": lambda: given.masked_fill((y <= 0) | (y >= 6), 0),
            "elu": lambda: torch.where(y <= 0, given * (y + a), given),
            "sigmoid": lambda: given * y * (1 - y),
            "tanh": lambda: given * (1 - y * y),
        }[p["activation"]]().to(t)
        torch.testing.assert_close(
            dx.view, expected, equal_nan=True, rtol=4 * torch.finfo(t).eps, atol=4 * torch.finfo(t).eps,
            msg=lambda m: f"{m}\n{text} on {name}, {isa}",
        )  # fmt: skip


@pytest.mark.parametrize("dtype", ["i32", "u8"])
def test_integers_know_no_activation_but_relu(dtype):
    text = f"conv n1c2h5w5 k2r3s3 st1 pd1 dl1 g1 {dtype} nchw fwd leaky_relu:0.5"
    answers = {a["name"]: a for a in _C.explain(text) if a["device"] == "cpu"}
    assert not any(a["ok"] for a in answers.values())
    for name in ("direct", "im2col"):
        assert answers[name]["reason"] == "knows no activation of integers but relu"


@pytest.mark.parametrize("name", ROWS)
def test_a_planted_epilogue_is_seen(name):
    """Another parameter, another activation, and a bias left out."""
    shape = "n1c32h9w13 k32r3s3 st1 pd1 dl1 g" + ("32" if name == "depthwise" else "1")
    for pass_, flags, planted in [
        ("fwd", " elu:0.7", ("elu:0.7", "elu:0.8")),
        ("fwd", " gelu", ("gelu", "silu")),
        ("grad_input", " leaky_relu:0.1", ("leaky_relu:0.1", "leaky_relu:0.11")),
        ("grad_weight", " tanh", ("tanh", "sigmoid")),
        ("grad_input", " bias", (" bias", "")),
    ]:
        text = f"conv {shape} f32 nchw {pass_}{flags}"
        check_conv(text, name)
        with pytest.raises(AssertionError):
            check_conv(text, name, run=lambda text, *rest, planted=planted: _C.run_row(text.replace(*planted), *rest))


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
    words = ["none"] + [word for word, functions in ACTIVATIONS.items() if functions[1] or p["pass"] == "forward"]
    word = draw(st.sampled_from(words if p["dtype"] != "i32" else ["none", "relu"]))
    p["activation"], _, parameter = word.partition(":")
    if parameter:
        p["activation_parameter"] = float(parameter)
    p["bias"] = draw(st.booleans())
    p["residual"] = p["pass"] == "forward" and draw(st.booleans())
    p["scale"] = p["pass"] == "forward" and p["dtype"] != "i32" and draw(st.booleans())
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
