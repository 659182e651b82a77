"""Every activation, forward and gradient, and the bias of grad_input, in every CUDA row: the emulator against torch in float64.

Random values are judged as everywhere (kernels.py). Then sums that are exact meet the activations' boundaries, NaN and
infinities: torch's own operators say what comes of them.
"""

from functools import partial

import pytest
import simt
import torch
import torch.nn.functional as F
from kernels import DTYPES, Operand, bound, convolution, gradients, random_values

from fastconv import _C

ACTIVATIONS = ["none", "relu", "leaky_relu:0.25", "relu6", "elu:0.75", "sigmoid", "tanh", "silu", "gelu", "hardswish"]
FROM_OUTPUT = ["relu", "leaky_relu:0.25", "relu6", "elu:0.75", "sigmoid", "tanh"]
FLOATS = ("f32", "bf16", "f64", "f16")
aten = torch.ops.aten


def forward(word, x):
    name, _, parameter = word.partition(":")
    if parameter:
        return getattr(F, name)(x, float(parameter))
    return x if name == "none" else torch.tanh(x) if name == "tanh" else getattr(F, name)(x)


def backward(word, dy, y):
    """torch's own operator, given the output. Of relu6 and elu its formula: for a NaN its CPU kernels do otherwise in their
    vectors than in the elements left over (2.13)."""
    name, _, parameter = word.partition(":")
    return {
        "none": lambda: dy,
        "relu": lambda: aten.threshold_backward(dy, y, 0),
        "leaky_relu": lambda: aten.leaky_relu_backward(dy, y, float(parameter), True),
        "relu6": lambda: torch.where((y <= 0) | (y >= 6), 0, dy),
        "elu": lambda: torch.where(y <= 0, dy * (y + float(parameter)), dy),
        "sigmoid": lambda: aten.sigmoid_backward(dy, y),
        "tanh": lambda: aten.tanh_backward(dy, y),
    }[name]()


# Rows with their forms; shapes that lead to vectors and to single values, along channels and along pixels.
DENSE = ["n2c5h6w11 k7r3s3 st1 pd0 dl1 g1", "n1c16h8w12 k16r1s1 st1 pd0 dl1 g1", "n1c6h9w10 k8r3s2 st2x1 pd0 dl1 g2"]
DEPTHWISE = [
    "n1c16h9w12 k16r3s3 st1 pd0 dl1 g16",
    "n2c8h7w9 k8r3s3 st2 pd0 dl1 g8",
    "n1c8h9w8 k8r5s5 st1 pd0 dl1 g8",
    "n1c6h7w8 k12r3s2 st1 pd0 dl1 g6",
]
GATHERS = {"direct:any": DENSE, "direct:tiled": DENSE, "im2col": DENSE, "implicit_gemm": DENSE, "depthwise": DEPTHWISE}
WEIGHTS = {"direct:any": DENSE, "direct:weight": DENSE, "im2col": DENSE, "implicit_gemm": DENSE, "depthwise": DEPTHWISE}


def scattered(values, specials, generator):
    """`values` with a tenth of them replaced by specials."""
    chosen = torch.tensor(specials, dtype=values.dtype)[torch.randint(len(specials), values.shape, generator=generator)]
    return torch.where(torch.rand(values.shape, generator=generator) < 0.1, chosen, values)


def agree(result, expected, context):
    """Exact sums through an activation: what is not finite is alike, the rest off by roundings of what it was made of."""
    expected = expected.to(result.dtype).double()  # infinite where the type overflows
    result = result.double()
    assert torch.equal(result.isnan(), expected.isnan()), f"NaN elsewhere: {context}"
    infinite = expected.isinf()
    assert torch.equal(result[infinite], expected[infinite]) and not result[~infinite].isinf().any(), context
    finite = expected.isfinite()
    return (result - expected)[finite].abs(), expected[finite].abs()


def check(text, row, word, *, special, seed, run):
    p, facts = _C.parse_problem(text), _C.problem_facts(text)
    g = torch.Generator().manual_seed(seed)
    dtype = DTYPES[p["dtype"]]
    fwd, weight_gradient = p["pass"] == "forward", p["pass"] == "grad_weight"
    x_sizes, y_sizes = (p["n"], p["c"], p["h"], p["w"]), (p["n"], p["k"], facts["p"], facts["q"])
    w_sizes = (p["k"], p["c"] // p["groups"], p["r"], p["s"])
    x, weight, y = (random_values(sizes, dtype, g, special) for sizes in (x_sizes, w_sizes, y_sizes))
    bias = random_values((p["k"] if fwd or weight_gradient else p["c"],), dtype, g, special)
    if fwd:
        aux = random_values(y_sizes, dtype, g, special)
        if special:
            weight *= torch.rand(w_sizes, generator=g) < 0.2
            aux = scattered(aux, [torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 6, -3, 3, -12, 40], g)
    else:
        aux = forward(word, random_values(y_sizes, torch.float64, g)).to(dtype)
        if special:
            aux = (aux * 2).round() / 2
            aux = scattered(aux, [torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 6, -1, 0.5], g)
            y = torch.where(aux <= 0, scattered(y, [torch.nan, torch.inf], g), y)
    operands = dict(
        x=Operand(x_sizes, p["x_strides"], dtype, x if fwd or weight_gradient else None),
        weight=Operand(w_sizes, p["weight_strides"], dtype, None if weight_gradient else weight),
        y=Operand(y_sizes, p["y_strides"], dtype, None if fwd else y),
    )
    if p["bias"]:
        operands["grad_bias" if weight_gradient else "bias"] = Operand(
            bias.shape, (1,), dtype, None if weight_gradient else bias
        )
    if p["residual"] or (not fwd and word != "none"):
        operands["aux"] = Operand(y_sizes, p["aux_strides"], dtype, aux)
    run(text, row, {name: o.address for name, o in operands.items()})
    context = f"{text} on {row}, {special=}"
    for name, o in operands.items():
        assert o.untouched_outside(), f"wrote outside {name}: {context}"

    def expected(to):
        """{operand: (its values, the sums that they were made of)}"""
        if fwd:
            out = convolution(x.to(to), weight.to(to), bias.to(to) if p["bias"] else None, p)
            out = out + aux.to(to) if p["residual"] else out
            return {"y": (forward(word, out), out)}
        dy = backward(word, y.to(to), aux.to(to))
        dx, dw, db = gradients(x.to(to), weight.to(to), dy, p)
        if weight_gradient:
            return {"weight": (dw, dw)} | ({"grad_bias": (db, db)} if p["bias"] else {})
        dx = dx + bias.to(to).view(1, -1, 1, 1) if p["bias"] else dx
        return {"x": (dx, dx)}

    theirs = expected(dtype)
    terms = facts["p"] * facts["q"] * p["n"] if weight_gradient else w_sizes[1] * w_sizes[2] * w_sizes[3]
    for name, (exact, sums) in expected(torch.float64).items():
        result = operands[name].view
        error, size = agree(result, exact, context)
        if special:
            eps = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
            allowed = 8 * eps * (1 + size) + torch.finfo(dtype).eps * size
        else:
            torch_error = (theirs[name][0].double() - exact).abs().max().item()
            largest = torch.stack([exact, sums]).to(dtype)  # sigmoid and tanh are small where their sums are not
            allowed = torch.tensor(bound(row, p, largest, torch_error, terms), dtype=torch.float64)
        assert bool((error <= allowed).all()), f"{name}: error {error.max():.3g}: {context}"


def run_all(row, shapes, pass_, word, flags):
    """Every shape in both layouts; the four types, and random and special values, in turn."""
    case = len(word) + len(row)
    for shape in shapes:
        for layout in ("nchw", "nhwc"):
            for special in (False, True):
                case += 1
                text = f"conv {shape} {FLOATS[case % 4]} {layout} {pass_}{flags}"
                check(text, row, word, special=special, seed=case, run=partial(simt.run_row, seed=case, eager=case % 3 == 0))
            case += 1


@pytest.mark.parametrize("word", ACTIVATIONS)
@pytest.mark.parametrize("row", GATHERS)
def test_forward(row, word):
    flags = " bias" + (f" {word}" if word != "none" else "") + " res"
    run_all(row, GATHERS[row], "fwd", word, flags)


@pytest.mark.parametrize("word", FROM_OUTPUT)
@pytest.mark.parametrize("row", GATHERS)
def test_grad_input(row, word):
    run_all(row, GATHERS[row], "grad_input", word, f" {word}")


@pytest.mark.parametrize("word", FROM_OUTPUT)
@pytest.mark.parametrize("row", WEIGHTS)
def test_grad_weight(row, word):
    run_all(row, WEIGHTS[row], "grad_weight", word, f" bias {word}")


@pytest.mark.parametrize("row", GATHERS)
def test_bias_of_grad_input(row):
    """Transposed convolution's: also where a stride leaves input elements that no window covers."""
    shapes = GATHERS[row] + ["n1c8h9w10 k8r1s1 st3 pd1 dl1 g1" if row != "depthwise" else "n1c8h9w10 k8r1s1 st3 pd1 dl1 g8"]
    run_all(row, shapes, "grad_input", "none", " bias")
    run_all(row, shapes, "grad_input", "relu6", " bias relu6")


def test_all_activations_are_covered():
    with pytest.raises(ValueError) as refusal:
        _C.problem_text(dict(kind="conv", activation="selu"))
    known = [word.partition(":")[0] for word in ACTIVATIONS]
    assert ", ".join(known) in str(refusal.value)
    for word, name in zip(ACTIVATIONS[1:], known[1:]):
        gradient = f"conv n1c1h1w1 k1r1s1 st1 pd0 dl1 g1 f32 nchw grad_input {word}"
        if word in FROM_OUTPUT:
            assert _C.parse_problem(gradient)["activation"] == name
        else:
            with pytest.raises(ValueError, match="does not follow from its output"):
                _C.parse_problem(gradient)


@pytest.mark.parametrize("planted", ["relu6", "elu:0.5"])
def test_another_activation_is_seen(planted):
    """The checks can fail: the kernel is told another activation than the judge."""
    text = f"conv {DENSE[0]} f32 nchw fwd bias {{}} res"

    def run(_, row, addresses):
        simt.run_row(text.format(planted), row, addresses)

    for special in (False, True):
        with pytest.raises(AssertionError, match="error|NaN|special"):
            check(text.format("elu:0.75"), "direct:any", "elu:0.75", special=special, seed=0, run=run)
