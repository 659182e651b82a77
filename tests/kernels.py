"""Runs one row of the algorithm table on guarded memory and judges the result. Shared by the tests of kernels."""

import math

import torch
import torch.nn.functional as F

from fastconv import _C

DTYPES = {
    "f32": torch.float32, "f64": torch.float64, "f16": torch.float16, "bf16": torch.bfloat16,
    "u8": torch.uint8, "i8": torch.int8, "i16": torch.int16, "i32": torch.int32, "i64": torch.int64,
}  # fmt: skip
# word in a problem's text -> (torch's function, torch's gradient from the output or None), given the parameter
ACTIVATIONS = {
    "relu": (lambda x, a: F.relu(x), lambda dy, y, a: aten.threshold_backward(dy, y, 0)),
    "leaky_relu:0.1": (lambda x, a: F.leaky_relu(x, a), lambda dy, y, a: aten.leaky_relu_backward(dy, y, a, True)),
    "relu6": (lambda x, a: F.relu6(x), lambda dy, y, a: aten.hardtanh_backward(dy, y, 0, 6)),
    "elu:0.7": (lambda x, a: F.elu(x, a), lambda dy, y, a: aten.elu_backward(dy, a, 1, 1, True, y)),
    "sigmoid": (lambda x, a: torch.sigmoid(x), lambda dy, y, a: aten.sigmoid_backward(dy, y)),
    "tanh": (lambda x, a: torch.tanh(x), lambda dy, y, a: aten.tanh_backward(dy, y)),
    "silu": (lambda x, a: F.silu(x), None),
    "gelu": (lambda x, a: F.gelu(x), None),
    "hardswish": (lambda x, a: F.hardswish(x), None),
}
_OF_NAME = {word.split(":")[0]: functions for word, functions in ACTIVATIONS.items()}
aten = torch.ops.aten
GUARD = 64  # elements before and after every operand
PASSES = ("fwd", "grad_input", "grad_weight")
_TABLE_NAMES = {"fwd": "forward"}


def rows(kind="conv", device="cpu"):
    return [row for row in _C.algorithms() if row["kind"] == kind and row["device"] == device]


def does(row, pass_, dtype):
    return _TABLE_NAMES.get(pass_, pass_) in row["passes"] and dtype in row["dtypes"]


def poison(dtype):
    return math.nan if dtype.is_floating_point else 85


class Operand:
    """A tensor inside a larger, poisoned buffer: what a kernel writes outside of it shows."""

    def __init__(self, sizes, strides, dtype, values=None):
        span = 1 + sum((n - 1) * s for n, s in zip(sizes, strides))
        self.buffer = torch.full((span + 2 * GUARD,), poison(dtype), dtype=dtype)
        self.view = self.buffer.as_strided(sizes, strides, GUARD)
        if values is not None:
            self.view.copy_(values)

    @property
    def address(self):
        return self.view.data_ptr()

    def untouched_outside(self):
        rest = self.buffer.clone()
        rest.as_strided(self.view.shape, self.view.stride(), GUARD).fill_(poison(self.buffer.dtype))
        same = rest.isnan() if rest.is_floating_point() else rest == poison(rest.dtype)
        return bool(same.all())


def random_values(sizes, dtype, generator, exact=False):
    """Normal values; small integers for integer dtypes, or where sums are to be exact."""
    if exact or not dtype.is_floating_point:
        low = 0 if dtype == torch.uint8 else -3
        return torch.randint(low, 4, sizes, generator=generator).to(dtype)
    return torch.randn(sizes, generator=generator, dtype=torch.float64).to(dtype)


def activate(x, p):
    return _OF_NAME[p["activation"]][0](x, p["activation_parameter"]) if p["activation"] != "none" else x


def gradient_from_output(dy, y, p):
    """Of the problem's activation, by torch."""
    return _OF_NAME[p["activation"]][1](dy, y, p["activation_parameter"]) if p["activation"] != "none" else dy


def outputs_of_activation(sizes, dtype, generator, p, exact):
    """What a forward pass may have given, both ends of its range included; NaN where it lets the gradient pass."""
    y = random_values(sizes, dtype, generator, exact)
    if not dtype.is_floating_point:
        return y
    if p["activation"] != "relu":
        y = activate(4 * y.double(), p).to(dtype)
    if p["activation"] in ("relu", "leaky_relu"):
        y[torch.rand(sizes, generator=generator) < 0.05] = math.nan
    return y


def bound(row, problem, expected, torch_error, terms, sums=None):
    """The largest error allowed: twice torch's own plus a rounding floor; Winograd's is stated by its accuracy class.

    An activation is applied to rounded `sums`, so their size sets the floor: no activation is steeper than 1.5. float64
    is its own reference, whose error is unknown: there the floor grows as roundings of `terms` products do.
    """
    dtype = expected.dtype
    scale = expected.double().abs().max().item() if expected.numel() else 0.0
    if not dtype.is_floating_point:
        return 0.0
    output_rounding = torch.finfo(dtype).eps * scale
    if sums is not None and sums.numel():
        scale = sums.abs().max().item()
    compute = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    if row == "winograd" and problem["accuracy"] != "torch" and dtype != torch.float64:
        return {"fast": 2e-6, "fastest": 1.2e-5}[problem["accuracy"]] * scale + output_rounding
    walk = math.sqrt(terms) if dtype == torch.float64 else 0
    return 2 * torch_error + output_rounding + (2 + walk) * compute * scale


def judge(name, result, expected64, torch_result, row, problem, terms, context, sums=None):
    expected = expected64.to(result.dtype) if result.dtype.is_floating_point else wrap(expected64, result.dtype)
    assert result.shape == expected.shape
    if not result.dtype.is_floating_point:
        assert torch.equal(result, expected), f"{name} differs: {context}"
        return
    assert bool(torch.isfinite(result).all()), f"{name} has values that were never written, or NaN: {context}"
    error = (result.double() - expected64).abs().max().item() if result.numel() else 0.0
    torch_error = (torch_result.double() - expected64).abs().max().item() if result.numel() else 0.0
    allowed = bound(row, problem, expected, torch_error, terms, sums)
    assert error <= allowed, f"{name}: error {error:.3g} > {allowed:.3g} (torch's is {torch_error:.3g}): {context}"


def wrap(exact, dtype):
    """A float64 sum as the integer that wrapping arithmetic gives."""
    bits = 8 * torch.empty(0, dtype=dtype).element_size()
    value = exact.to(torch.int64)
    return value if bits == 64 else (value & (2**bits - 1)).to(torch.int64).to(dtype)


def convolution(x, weight, bias, p):
    padded = F.pad(x, (p["pad_left"], p["pad_right"], p["pad_top"], p["pad_bottom"]))
    return F.conv2d(
        padded, weight, bias, (p["stride_h"], p["stride_w"]), 0, (p["dilation_h"], p["dilation_w"]), p["groups"]
    )


def gradients(x, weight, dy, p):
    """grad_input, grad_weight, grad_bias of torch, from contiguous copies (it errs on some sliced operands)."""
    x = x.contiguous().detach().requires_grad_()
    weight = weight.contiguous().detach().requires_grad_()
    dx, dw = torch.autograd.grad(convolution(x, weight, None, p), (x, weight), dy.contiguous())
    return dx, dw, dy.sum((0, 2, 3))


def torch_computes(dtype):
    """The dtype in which torch's own op serves as the yardstick: integers are exact in float64."""
    return dtype if dtype.is_floating_point else torch.float64


def check_conv(text, row, *, threads=1, prepacked=False, seed=0, exact=False, run=_C.run_row):
    """Runs `row` on the problem of a canonical text and compares with torch in float64. `run` is called as _C.run_row."""
    p = _C.parse_problem(text)
    facts = _C.problem_facts(text)
    g = torch.Generator().manual_seed(seed)
    dtype = DTYPES[p["dtype"]]
    yardstick = torch_computes(dtype)
    x_sizes = (p["n"], p["c"], p["h"], p["w"])
    w_sizes = (p["k"], p["c"] // p["groups"], p["r"], p["s"])
    window = 2 if p["max_pool"] else 1
    y_sizes = (p["n"], p["k"], facts["p"] // window, facts["q"] // window)
    context = f"{text} on {row}, {_C.cpu_isa()}, {threads} threads, {prepacked=}"
    forward = p["pass"] == "forward"
    masks = p["activation"] != "none" and not forward

    def operand(sizes, strides, filled):
        return Operand(sizes, strides, dtype, random_values(sizes, dtype, g, exact) if filled else None)

    weight_gradient = p["pass"] == "grad_weight"
    x = operand(x_sizes, p["x_strides"], forward or weight_gradient)
    weight = operand(w_sizes, p["weight_strides"], not weight_gradient)
    y = operand(y_sizes, p["y_strides"], not forward)
    aux = operand(y_sizes, p["aux_strides"], True) if p["residual"] else None
    if masks:
        aux = Operand(y_sizes, p["aux_strides"], dtype, outputs_of_activation(y_sizes, dtype, g, p, exact))
    bias_size = p["c"] if p["pass"] == "grad_input" else p["k"]
    bias = operand((bias_size,), (1,), not weight_gradient) if p["bias"] else None
    operands = {"x": x, "weight": weight, "y": y}
    scale = None
    if p["scale"]:  # of the type that sums have
        scale_type = torch.float64 if dtype == torch.float64 else torch.float32
        values = random_values((p["k"],), scale_type, g, exact)
        scale = operands["scale"] = Operand((p["k"],), (1,), scale_type, values)
    if aux:
        operands["aux"] = aux
    if bias:
        operands["grad_bias" if weight_gradient else "bias"] = bias

    run(text, row, {name: o.address for name, o in operands.items()}, threads, prepacked)
    for name, o in operands.items():
        assert o.untouched_outside(), f"wrote outside {name}: {context}"

    def wide(o, to=torch.float64):
        return o.view.to(to)

    if forward:
        def sums(to):
            inside = wide(bias, to) if bias and not scale else None
            out = convolution(wide(x, to), wide(weight, to), inside, p)
            if scale:
                out = out * wide(scale, to)[:, None, None]
            if scale and bias:
                out = out + wide(bias, to)[:, None, None]
            return out + wide(aux, to) if p["residual"] else out

        def outputs(sums):
            return F.max_pool2d(activate(sums, p), window)

        terms = w_sizes[1] * w_sizes[2] * w_sizes[3]
        exact_sums = sums(torch.float64)
        judge(
            "y", y.view, outputs(exact_sums), outputs(sums(yardstick)), row, p, terms, context,
            exact_sums if p["activation"] not in ("none", "relu") else None,
        )  # fmt: skip
        return

    def masked(to):
        return gradient_from_output(wide(y, to), wide(aux, to), p) if masks else wide(y, to)

    if p["pass"] == "grad_input":
        blank = torch.zeros(x_sizes)
        dx = gradients(blank.double(), wide(weight), masked(torch.float64), p)[0]
        torch_dx = gradients(blank.to(yardstick), wide(weight, yardstick), masked(yardstick), p)[0]
        if bias:
            dx = dx + wide(bias)[:, None, None]
            torch_dx = torch_dx + wide(bias, yardstick)[:, None, None]
        judge("grad_input", x.view, dx, torch_dx, row, p, p["k"] * p["r"] * p["s"], context)
    else:
        blank = torch.zeros(w_sizes)
        _, dw, db = gradients(wide(x), blank.double(), masked(torch.float64), p)
        _, torch_dw, torch_db = gradients(wide(x, yardstick), blank.to(yardstick), masked(yardstick), p)
        terms = p["n"] * facts["p"] * facts["q"]
        judge("grad_weight", weight.view, dw, torch_dw, row, p, terms, context)
        if bias:
            judge("grad_bias", bias.view, db, torch_db, row, p, terms, context)
