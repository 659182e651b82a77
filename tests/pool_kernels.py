"""Runs one pooling row on guarded memory and judges the result: maxima against the definition, averages and LP pools
against torch."""

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
    # Small planes, which gradients stack: inputs in the outputs' pattern, with a column more, with gaps needed between.
    "n2c37h7w7 r3s3 st1 pd1 dl1",
    "n2c41h12w16 r3s3 st2 pd1 dl1",
    "n3c23h13w15 r3s3 st2 pd0 dl1",
    "n2c19h23w12 r4s3 st3x2 pd2x1 dl1",
    # Planes in several bands.
    "n1c2h91w67 r3s3 st1 pd1 dl1",
    "n2c2h150w61 r3s2 st2 pd1x0 dl1",
    # One window over the whole plane: less than a vector, more than four, one plane more than lanes.
    "n3c11h2w3 r2s3 st1 pd0 dl1",
    "n2c17h7w7 r7s7 st2 pd0 dl1",
    "n1c33h13w17 r13s17 st1 pd0 dl1",
]
AVG_SHAPES = [s for s in MAX_SHAPES if s.endswith(" dl1")]
AVG_FLAGS = ["", " ceil", " nopad", " ceil nopad", " div3", " ceil div-5"]
LP_SHAPES = [
    "n2c5h9w11 r3s3 st1 pd0 dl1",
    "n1c3h13w70 r2s2 st2 pd0 dl1",
    "n2c67h11w7 r3s3 st2 pd0 dl1",
    "n1c33h7w37 r3s2 st1x2 pd0 dl1",
    "n1c4h10w41 r2s5 st3x1 pd0 dl1",
    "n1c17h23w29 r1s4 st2x3 pd0 dl1",
    "n1c130h5w5 r5s5 st5 pd0 dl1",
    "n2c2h13w35 r7s7 st1 pd0 dl1",
    "n1c2h6w9 r1s1 st3x2 pd0 dl1",
    "n3c11h2w3 r2s3 st1 pd0 dl1",
    "n2c17h7w7 r7s7 st2 pd0 dl1",
    "n1c33h13w17 r13s17 st1 pd0 dl1",
]
NORMS = [2, 1, 3, 0.5, 2.5, -1, 4]
# Sizes of output below and above the input's, windows that overlap, one axis whole; the window is made canonical.
ADAPTIVE_SHAPES = [
    ("n2c5h9w11 r1s1 st1 pd0 dl1", "p4q3"),
    ("n1c3h13w70 r1s1 st1 pd0 dl1", "p6q33"),
    ("n2c67h11w7 r1s1 st1 pd0 dl1", "p3q10"),
    ("n1c33h7w37 r1s1 st1 pd0 dl1", "p7q5"),
    ("n1c130h5w5 r1s1 st1 pd0 dl1", "p2q3"),
    ("n2c2h10w41 r1s1 st1 pd0 dl1", "p1q4"),
    ("n1c17h3w29 r1s1 st1 pd0 dl1", "p8q31"),
    ("n1c19h31w23 r1s1 st1 pd0 dl1", "p3q2"),
    ("n2c35h7w9 r1s1 st1 pd0 dl1", "p1q1"),
]


def sizes_of(p):
    return (p["n"], p["c"], p["h"], p["w"]), (p["n"], p["c"], p["p"], p["q"])


def lowest(dtype):
    return -math.inf if dtype.is_floating_point else torch.iinfo(dtype).min


def adaptive_axis(size, windows):
    """Begin and end of every window along an axis, as torch has them."""
    i = torch.arange(windows)
    return i * size // windows, ((i + 1) * size + windows - 1) // windows


def tap_rows(p, size, windows, tap, stride, pad, dilation):
    """Where each window of an axis reads with one of its taps, and whether that is an element of the window."""
    if p["adaptive"]:
        begin, end = adaptive_axis(p[size], p[windows])
        return begin + tap, begin + tap < end
    at = torch.arange(p[windows]) * p[stride] - p[pad] + tap * p[dilation]
    return at, (at >= 0) & (at < p[size])


def taps(p):
    """For each tap of the window, first to last: its offset, the plane position that each output reads there, and which
    outputs do so inside the plane."""
    for r in range(p["r"]):
        for s in range(p["s"]):
            h, h_inside = tap_rows(p, "h", "p", r, "stride_h", "pad_top", "dilation_h")
            w, w_inside = tap_rows(p, "w", "q", s, "stride_w", "pad_left", "dilation_w")
            inside = h_inside[:, None] & w_inside
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


def offsets_inside(offsets, p):
    """Those that lead into padding, which no forward yields, become none."""
    flat = offsets.flatten(2)
    for offset, _, inside in taps(p):
        flat = torch.where((flat == offset) & ~inside, -1, flat)
    return flat.view(offsets.shape)


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


def adaptive_sums(p):
    """0/1 matrices that sum over the windows of each axis, and the number of elements of every window."""
    sums = []
    for size, windows in (("h", "p"), ("w", "q")):
        begin, end = adaptive_axis(p[size], p[windows])
        at = torch.arange(p[size])
        sums.append(((at >= begin[:, None]) & (at < end[:, None])).long())
    return *sums, sums[0].sum(1)[:, None] * sums[1].sum(1)


def average(x, p):
    if p["adaptive"]:
        if x.is_floating_point():
            return F.adaptive_avg_pool2d(x, (p["p"], p["q"]))
        rows, columns, count = adaptive_sums(p)  # torch has no adaptive integers
        return (rows @ x @ columns.T).div(count, rounding_mode="trunc")
    return F.avg_pool2d(x, *average_arguments(p))


def average_arguments(p):
    return [
        [p["r"], p["s"]], [p["stride_h"], p["stride_w"]], [p["pad_top"], p["pad_left"]],
        bool(p["ceil_mode"]), bool(p["count_include_pad"]), p["divisor"] or None,
    ]  # fmt: skip


def average_gradient(dy, p):
    if p["adaptive"] and not dy.is_floating_point():
        rows, columns, count = adaptive_sums(p)
        return rows.T @ dy.div(count, rounding_mode="trunc") @ columns
    if p["adaptive"]:
        blank = torch.zeros(sizes_of(p)[0], dtype=dy.dtype, requires_grad=True)
        return torch.autograd.grad(average(blank, p), blank, dy.contiguous())[0]
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


def lp_norm(x, p):
    return F.lp_pool2d(x, p["norm"], [p["r"], p["s"]], [p["stride_h"], p["stride_w"]], bool(p["ceil_mode"]))


def lp_gradient(x, dy, p):
    x = x.contiguous().detach().requires_grad_()
    return torch.autograd.grad(lp_norm(x, p), x, dy.contiguous())[0]


def check_lp(text, *, threads=1, seed=0, integers=False, run=_C.run_row):
    """Positive values where a negative one's power or root is NaN or cancels. `integers`: of both signs, among them
    windows of zeros; sums of their powers are exact, so that it is certain which sums are negative (NaN) or zero."""
    p = _C.parse_problem(text)
    g = torch.Generator().manual_seed(seed)
    dtype = DTYPES[p["dtype"]]
    x_sizes, y_sizes = sizes_of(p)
    fwd = p["pass"] == "forward"
    context = f"{text}, {_C.cpu_isa()}, {threads} threads, {integers=}"

    source = random_values(x_sizes, dtype, g, exact=integers)
    if integers:
        source[:, ::2, : x_sizes[2] // 2 + 1] = 0
    elif p["norm"] not in (1, 2, 4):
        source = source.abs() + 0.25
    x = operand(x_sizes, p["x_strides"], dtype, source if fwd else None)
    y = operand(y_sizes, p["y_strides"], dtype, None if fwd else random_values(y_sizes, dtype, g))
    operands = {"x": x, "y": y}
    if not fwd:
        operands["input"] = operand(x_sizes, p["x_strides"], dtype, source)
        norms = lp_norm(operands["input"].view.double().contiguous(), p).to(dtype)
        operands["output"] = operand(y_sizes, p["y_strides"], dtype, norms)
    run(text, "lp_pool", {name: o.address for name, o in operands.items()}, threads)
    for name, o in operands.items():
        assert o.untouched_outside(), f"wrote outside {name}: {context}"

    if fwd:
        result, exact, theirs = y.view, lp_norm(x.view.double().contiguous(), p), lp_norm(x.view.contiguous(), p)
    else:
        given = operands["input"].view
        result, theirs = x.view, lp_gradient(given, y.view, p)
        exact = lp_gradient(given.double(), y.view.double(), p)
    assert torch.equal(result.isnan(), exact.isnan()), f"NaN in other places than torch's: {context}"
    blank = [torch.nan_to_num(t, nan=0.0, posinf=math.inf, neginf=-math.inf) for t in (result, exact, theirs)]
    judge("result", *blank, "lp_pool", p, p["r"] * p["s"], context)


def check(text, **how):
    {"maxpool": check_max, "avgpool": check_avg, "lppool": check_lp}[text.split()[0]](text, **how)


def adaptive_texts(kind, pass_, dtype, layout, offsets=("",)):
    for shape, windows in ADAPTIVE_SHAPES:
        for off in offsets:
            yield f"{kind} {shape} {dtype} {layout} {pass_}{off} adaptive {windows}"


def max_texts(pass_, dtype, layout, offsets=(" off8", "")):
    for i, shape in enumerate(MAX_SHAPES):
        ceil = " ceil" if i % 3 == 1 else ""
        for off in offsets if pass_ == "fwd" else (" off8",):
            yield f"maxpool {shape} {dtype} {layout} {pass_}{off}{ceil}"
    yield from adaptive_texts("maxpool", pass_, dtype, layout, offsets if pass_ == "fwd" else (" off8",))


def avg_texts(pass_, dtype, layout):
    for i, shape in enumerate(AVG_SHAPES):
        for flag in {AVG_FLAGS[i % 6], AVG_FLAGS[(i + 3) % 6]}:
            yield f"avgpool {shape} {dtype} {layout} {pass_}{flag}"
    yield from adaptive_texts("avgpool", pass_, dtype, layout)


def lp_texts(pass_, dtype, layout):
    for i, shape in enumerate(LP_SHAPES):
        for j in range(3):
            yield f"lppool {shape} {dtype} {layout} {pass_}{' ceil' * (j != 1)} norm{NORMS[(i + 2 * j) % 7]}"


def texts(name, pass_, dtype, layout):
    return {"max_pool": max_texts, "avg_pool": avg_texts, "lp_pool": lp_texts}[name](pass_, dtype, layout)
