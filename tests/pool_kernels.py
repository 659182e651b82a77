"""Runs one pooling row on guarded memory and judges the result: maxima against the definition, averages against torch."""

import math

import torch
import torch.nn.functional as F
from kernels import DTYPES, Operand, judge, random_values

from fastconv import _C

OFFSETS = {8: torch.uint8, 16: torch.int16, 32: torch.int32}
FLOATS = ("f32", "f64", "f16", "bf16")
PASSES = ("fwd", "grad_input", "gather")

# h != w, primes, odd channels, more and fewer channels and columns than any vector has lanes, strides 1, 2 and 3.
MAX_SHAPES = [
    "n2c5h9w11 r3s3 st1 pd1 dl1",
    "n1c3h13w70 r2s2 st2 pd0 dl1",
    "n2c67h11w7 r3s3 st2 pd1 dl1",
    "n1c33h7w37 r3s2 st1x2 pd1x0 dl2x3",
    "n1c4h10w41 r2s5 st3x1 pd1x2 dl1x2",
    "n2c3h2w11 r2s5 st2x3 pd1x2 dl3x1",  # windows wholly in padding
    "n1c17h23w29 r1s4 st2x3 pd0x2 dl1",
    "n1c130h5w5 r5s5 st5 pd0 dl1",
    "n2c2h13w35 r7s7 st1 pd3 dl1",
    "n1c2h6w9 r1s1 st3x2 pd0 dl1",
    "n2c1h1w1 r3s3 st1 pd1 dl1",
]
AVG_SHAPES = [s for s in MAX_SHAPES if s.endswith(" dl1")]
AVG_FLAGS = ["", " ceil", " nopad", " ceil nopad", " div3", " ceil div-5"]


def sizes_of(p):
    return (p["n"], p["c"], p["h"], p["w"]), (p["n"], p["c"], p["p"], p["q"])


def lowest(dtype):
    return -math.inf if dtype.is_floating_point else torch.iinfo(dtype).min


def taps(p):
    """For each tap of the window, first to last: its offset, the plane position that each output reads there, and which
    outputs do so inside the plane."""
    for r in range(p["r"]):
        for s in range(p["s"]):
            h = torch.arange(p["p"]) * p["stride_h"] - p["pad_top"] + r * p["dilation_h"]
            w = torch.arange(p["q"]) * p["stride_w"] - p["pad_left"] + s * p["dilation_w"]
            inside = ((h >= 0) & (h < p["h"]))[:, None] & ((w >= 0) & (w < p["w"]))
            yield r * p["s"] + s, (h[:, None] * p["w"] + w).where(inside, 0).flatten(), inside.flatten()


def maxima(x, p):
    """The definition: values, and offsets with -1 for none, as (n, c, p * q)."""
    plane = x.flatten(2)
    best = torch.full((*plane.shape[:2], p["p"] * p["q"]), lowest(x.dtype), dtype=x.dtype)
    offsets = torch.full(best.shape, -1)
    for offset, position, inside in taps(p):
        value = plane[:, :, position]
        wins = inside & ((value > best) | (value != value) | (offsets == -1))
        best, offsets = value.where(wins, best), torch.where(wins, offset, offsets)
    return best, offsets


def positions(offsets, p):
    """Plane positions of given offsets; h * w, one past the plane, for none."""
    result = torch.full(offsets.shape, p["h"] * p["w"])
    for offset, position, _ in taps(p):
        result = torch.where(offsets == offset, position, result)
    return result


def special_values(sizes, dtype, generator):
    """Small integers of both signs, so with ties and both zeros, and in places NaN and infinities."""
    x = random_values(sizes, dtype, generator, exact=True)
    if not dtype.is_floating_point:
        x[:, :1] = lowest(dtype)
        return x
    dice = torch.rand(sizes, generator=generator)
    x = x * torch.where(torch.rand(sizes, generator=generator) < 0.5, -1, 1).to(dtype)
    x[dice < 0.06] = math.nan
    x[dice > 0.94] = math.inf
    x[(dice > 0.5) & (dice < 0.9)] = -math.inf
    x[:, :1] = -math.inf  # whole planes of the start value
    x[dice < 0.03] *= -1
    return x


def identical(a, b):
    return bool(((a == b) | ((a != a) & (b != b))).all())


def operand(sizes, strides, dtype, values=None):
    """Along dimensions of stride 0 the first of the values stands for all."""
    o = Operand(sizes, strides, dtype)
    if values is not None:
        distinct = [n if step or n < 2 else 1 for n, step in zip(sizes, strides)]
        o.view.as_strided(distinct, strides).copy_(values[tuple(slice(n) for n in distinct)])
    return o


def check_max(text, *, threads=1, seed=0, values=special_values, run=_C.run_row):
    p = _C.parse_problem(text)
    g = torch.Generator().manual_seed(seed)
    dtype = DTYPES[p["dtype"]]
    x_sizes, y_sizes = sizes_of(p)
    context = f"{text}, {_C.cpu_isa()}, {threads} threads"
    fwd, back = p["pass"] == "forward", p["pass"] == "grad_input"

    source = values(x_sizes, dtype, g)
    x = operand(x_sizes, p["x_strides"], dtype, None if back else source)
    y = operand(y_sizes, p["y_strides"], dtype, random_values(y_sizes, dtype, g) if back else None)
    source = source if back else x.view.contiguous()
    best, expected_offsets = maxima(source, p)
    operands = {"x": x, "y": y}
    if p["offset_bytes"]:
        bits = 8 * p["offset_bytes"]
        given = expected_offsets.remainder(2**bits).view(y_sizes)
        signed = given if bits == 8 else torch.where(given < 2 ** (bits - 1), given, given - 2**bits)
        operands["offsets"] = operand(y_sizes, p["offset_strides"], OFFSETS[bits], None if fwd else signed)
    run(text, "max_pool", {name: o.address for name, o in operands.items()}, threads)
    for name, o in operands.items():
        assert o.untouched_outside(), f"wrote outside {name}: {context}"

    if fwd:
        assert identical(y.view.flatten(2), best), f"values differ: {context}"
        if p["offset_bytes"]:
            assert torch.equal(operands["offsets"].view, signed.to(OFFSETS[bits])), f"offsets differ: {context}"
        return
    read = operands["offsets"].view.to(torch.int64).remainder(2**bits).flatten(2)
    chosen = positions(torch.where(read == 2**bits - 1, -1, read), p)
    if back:
        gradient = torch.zeros(*x_sizes[:2], p["h"] * p["w"] + 1, dtype=torch.float64)
        gradient.scatter_add_(2, chosen, y.view.double().flatten(2))
        gradient = gradient[:, :, :-1].view(x_sizes)
        rounded = gradient.to(dtype) if dtype.is_floating_point else gradient
        judge("grad_input", x.view, gradient, rounded, "max_pool", p, p["r"] * p["s"], context)
    else:
        plane = torch.cat([source.flatten(2), torch.zeros(*x_sizes[:2], 1, dtype=dtype)], 2)
        assert identical(y.view.flatten(2), plane.gather(2, chosen)), f"gathered values differ: {context}"


def average(x, p):
    return F.avg_pool2d(x, *average_arguments(p))


def average_arguments(p):
    return [
        [p["r"], p["s"]], [p["stride_h"], p["stride_w"]], [p["pad_top"], p["pad_left"]],
        bool(p["ceil_mode"]), bool(p["count_include_pad"]), p["divisor"] or None,
    ]  # fmt: skip


def average_gradient(dy, p):
    blank = torch.zeros(sizes_of(p)[0], dtype=dy.dtype)
    return torch.ops.aten.avg_pool2d_backward(dy.contiguous(), blank, *average_arguments(p))


def check_avg(text, *, threads=1, seed=0, run=_C.run_row):
    p = _C.parse_problem(text)
    g = torch.Generator().manual_seed(seed)
    dtype = DTYPES[p["dtype"]]
    x_sizes, y_sizes = sizes_of(p)
    fwd = p["pass"] == "forward"

    def values(sizes):
        return random_values(sizes, dtype, g) if dtype.is_floating_point else torch.randint(-99, 99, sizes, generator=g)

    x = operand(x_sizes, p["x_strides"], dtype, values(x_sizes) if fwd else None)
    y = operand(y_sizes, p["y_strides"], dtype, None if fwd else values(y_sizes))
    context = f"{text}, {_C.cpu_isa()}, {threads} threads"
    run(text, "avg_pool", {"x": x.address, "y": y.address}, threads)
    for name, o in {"x": x, "y": y}.items():
        assert o.untouched_outside(), f"wrote outside {name}: {context}"
    source, result, reference = (x, y, average) if fwd else (y, x, average_gradient)
    theirs = reference(source.view.contiguous(), p)
    if not dtype.is_floating_point:
        assert torch.equal(result.view, theirs), f"differs: {context}"
        return
    exact = reference(source.view.double().contiguous(), p)
    judge("result", result.view, exact, theirs, "avg_pool", p, p["r"] * p["s"], context)


def check(text, **how):
    (check_max if text.startswith("maxpool") else check_avg)(text, **how)


def max_texts(pass_, dtype, layout, offsets=(" off8", "")):
    for i, shape in enumerate(MAX_SHAPES):
        ceil = " ceil" if i % 3 == 1 else ""
        for off in offsets if pass_ == "fwd" else (" off8",):
            yield f"maxpool {shape} {dtype} {layout} {pass_}{off}{ceil}"


def avg_texts(pass_, dtype, layout):
    for i, shape in enumerate(AVG_SHAPES):
        for flag in {AVG_FLAGS[i % 6], AVG_FLAGS[(i + 3) % 6]}:
            yield f"avgpool {shape} {dtype} {layout} {pass_}{flag}"


def texts(name, pass_, dtype, layout):
    return (max_texts if name == "max_pool" else avg_texts)(pass_, dtype, layout)
