"""Every pooling row of the table, on every ISA, pass, dtype and layout: maxima against the definition, averages against
torch in float64.

Operands lie in guarded, poisoned memory (kernels.py), so values that were never written and writes outside show.
"""

import csv
import math
import pathlib

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from kernels import DTYPES, Operand, does, judge, random_values, rows

from fastconv import _C

DATA = pathlib.Path(__file__).parent / "data" / "pool2d_shapes.csv"
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


@pytest.fixture
def isa(request):
    """Taken as an argument of tests; "best" is the one in use without."""
    before = _C.cpu_isa()
    _C.set_cpu_isa(request.param if request.param != "best" else before)
    yield request.param
    _C.set_cpu_isa(before)


# Integers have no vector loops, so one ISA stands for all.
ISAS_AND_DTYPES = [(isa, dtype) for dtype in DTYPES for isa in (_C.cpu_isas() if dtype in FLOATS else ["best"])]


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


def check_max(text, *, threads=1, seed=0, values=special_values):
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
    _C.run_row(text, "max_pool", {name: o.address for name, o in operands.items()}, threads)
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


def check_avg(text, *, threads=1, seed=0):
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
    _C.run_row(text, "avg_pool", {"x": x.address, "y": y.address}, threads)
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


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("isa, dtype", ISAS_AND_DTYPES, indirect=["isa"])
@pytest.mark.parametrize("row", rows("pool"), ids=lambda row: row["name"])
def test_dtypes_and_passes(row, dtype, layout, isa):
    wanted = [pass_ for pass_ in PASSES if does(row, pass_, dtype)]
    assert wanted or row["name"] == "avg_pool" and dtype in ("u8", "i8", "i16", "i32")  # as torch
    for pass_ in wanted:
        for i, text in enumerate(texts(row["name"], pass_, dtype, layout)):
            check(text, seed=i, threads=1 + i % 3)


LAYOUTS = [
    "x:nchw y:nhwc",
    "x:nhwc y:nchw",
    "x:0,0,0,0 y:nchw",
    "x:nchw y:0,0,0,0",
    "x:0,1,0,0 y:nhwc",
    "x:90000,3000,100,1 y:nchw",  # rows with gaps
    "x:400000,1,9000,200 y:nhwc",  # pixels with gaps
    "x:90000,3000,1,60 y:nchw",  # transposed
    "x:nchw y:90000,3000,100,2",
    "x:nhwc y:400000,1,9000,200",
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("row", rows("pool"), ids=lambda row: row["name"])
def test_any_strides(row, dtype, layout):
    """Views of all kinds. What is written must not overlap itself, so operands with zero strides are only read."""
    for pass_ in row["passes"]:
        written = layout.split()[0 if pass_ == "grad_input" else 1]
        if ":0," in written:
            continue
        word = {"forward": "fwd"}.get(pass_, pass_)
        offsets = " off8" if row["name"] == "max_pool" else ""
        kind = row["name"].replace("_", "")
        for o in ("", " o:nhwc", " o:nchw") if offsets else ("",):
            for shape in ("n2c5h9w11 r3s3 st1 pd1 dl1", "n1c20h13w40 r2s2 st2 pd0 dl1"):
                check(f"{kind} {shape} {dtype} {layout}{o} {word}{offsets}", threads=2)


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_offsets_of_16_bits(layout, pass_):
    for dtype in ("f32", "f16", "u8"):
        check_max(f"maxpool n1c2h20w21 r16s16 st3x2 pd8 dl1 {dtype} {layout} {pass_} off16")


def test_offsets_of_32_bits():
    """65,792 positions in a window: against torch's indices, as the definition would take minutes."""
    ops, g = torch.ops.fastconv, torch.Generator().manual_seed(0)
    x = torch.randint(0, 10**6, (2, 3, 261, 258), generator=g).float()
    x[:, 1:, 260] += 10**6  # the last row of the lower windows
    window = [257, 256], [4, 2], [0, 0], [1, 1], False
    y, indices = F.max_pool2d(x, *window, return_indices=True)
    assert (indices > 65535).any()
    ours, offsets = ops.max_pool2d(x, *window)
    assert offsets.dtype is torch.int32 and torch.equal(ours, y)
    assert torch.equal(ops.max_pool2d_indices(offsets, x.shape, *window), indices)
    assert torch.equal(ops.max_pool2d_gather(x, offsets, *window), y)
    expected = torch.zeros(2, 3, 261 * 258).scatter_add_(2, indices.flatten(2), y.flatten(2)).view(x.shape)
    assert torch.equal(ops.max_pool2d_backward(y, offsets, x.shape, *window), expected)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("isa, dtype", [case for case in ISAS_AND_DTYPES if case[1] in FLOATS], indirect=["isa"])
def test_special_values_as_torch(dtype, layout, isa):
    """The definition above is torch's: NaN, infinities, ties and planes of -inf, values and indices."""
    memory_format = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}[layout]
    for seed, shape in enumerate(MAX_SHAPES):
        p = _C.parse_problem(f"maxpool {shape} {dtype} nchw fwd")
        x = special_values(sizes_of(p)[0], DTYPES[dtype], torch.Generator().manual_seed(seed))
        pair = ("kernel_size", ("r", "s")), ("stride", ("stride_h", "stride_w"))
        pair += ("padding", ("pad_top", "pad_left")), ("dilation", ("dilation_h", "dilation_w"))
        kwargs = {name: [p[f] for f in fields] for name, fields in pair}
        y, indices = F.max_pool2d(x.contiguous(memory_format=memory_format), **kwargs, return_indices=True)
        best, offsets = maxima(x, p)
        inside = offsets != -1  # elsewhere torch's index is past the plane
        assert identical(y.flatten(2), best)
        assert torch.equal(indices.flatten(2)[inside], positions(offsets, p)[inside])
        ours, ours_offsets = torch.ops.fastconv.max_pool2d(
            x.contiguous(memory_format=memory_format), **kwargs, ceil_mode=False
        )
        assert identical(ours, y) and torch.equal(ours_offsets.flatten(2).to(torch.int64), offsets.remainder(256))


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("row", rows("pool"), ids=lambda row: row["name"])
def test_thread_counts_give_the_same_bits(row, layout):
    """Large enough for every task split, units and bands of rows."""
    kind = row["name"].replace("_", "")
    for shape in ("n1c3h211w307 r3s3 st2 pd1 dl1", "n2c37h61w53 r2s2 st1 pd1 dl1"):
        for pass_ in row["passes"]:
            word = {"forward": "fwd"}.get(pass_, pass_)
            text = f"{kind} {shape} f32 {layout} {word}" + (" off8" if kind == "maxpool" else "")
            p = _C.parse_problem(text)
            x_sizes, y_sizes = sizes_of(p)
            g = torch.Generator().manual_seed(0)
            data = {"x": torch.randn(x_sizes, generator=g), "y": torch.randn(y_sizes, generator=g)}
            results = []
            for threads in (1, 2, 3, 7):
                x = Operand(x_sizes, p["x_strides"], torch.float32, data["x"])
                y = Operand(y_sizes, p["y_strides"], torch.float32, data["y"])
                offsets = torch.arange(y.view.numel()).view(y_sizes) % (p["r"] * p["s"])
                o = Operand(y_sizes, p["y_strides"], torch.uint8, offsets)
                _C.run_row(text, row["name"], {"x": x.address, "y": y.address, "offsets": o.address}, threads)
                results.append((x.buffer, y.buffer, o.buffer))
            for other in results[1:]:
                for a, b in zip(results[0], other):
                    assert a.numpy().tobytes() == b.numpy().tobytes(), f"{text} differs with more threads"


def real_sizes():
    with DATA.open(newline="") as file:
        for i, line in enumerate(csv.DictReader(file)):
            v = {key: int(value) for key, value in line.items() if key not in ("source", "name")}
            geometry = dict(
                n=min(v["n"], 2), c=v["c"], h=v["h"], w=v["w"], r=v["r"], s=v["s"], stride_h=v["stride_h"],
                stride_w=v["stride_w"], pad_top=v["pad_t"], pad_left=v["pad_l"],
            )  # fmt: skip
            for kind in ("max", "avg"):
                for pass_ in ("forward", "grad_input"):
                    offsets = dict(offset_bytes=1 if v["r"] * v["s"] <= 255 else 2) if kind == "max" else {}
                    layout = ("nchw", "nhwc")[i % 2]
                    text = _C.problem_text(dict(geometry, kind=kind, layout=layout, **{"pass": pass_}, **offsets))
                    p = _C.parse_problem(text)
                    # The lists allow less padding below and to the right than above and to the left: then a smaller
                    # output than torch's.
                    assert p["p"] - v["out_h"] in (0, 1) and p["q"] - v["out_w"] in (0, 1), text
                    yield text


@pytest.mark.parametrize("text", sorted(set(real_sizes())))
def test_real_size(text):
    check(text, threads=2)


@st.composite
def problems(draw):
    kind = draw(st.sampled_from(["max", "max", "avg"]))
    dilation = st.integers(1, 3) if kind == "max" else st.just(1)
    p = dict(
        kind=kind, n=draw(st.integers(1, 3)), c=draw(st.integers(1, 70)), h=draw(st.integers(1, 20)),
        w=draw(st.integers(1, 70)), r=draw(st.integers(1, 6)), s=draw(st.integers(1, 6)),
        stride_h=draw(st.integers(1, 4)), stride_w=draw(st.integers(1, 4)), dilation_h=draw(dilation),
        dilation_w=draw(dilation), ceil_mode=draw(st.booleans()),
        dtype=draw(st.sampled_from(["f32", "f64", "f16", "bf16", "i64"])),
    )  # fmt: skip
    p["pad_top"], p["pad_left"] = (draw(st.integers(0, p[window] // 2)) for window in "rs")
    for size, pad, dilated, window in (("h", "pad_top", "dilation_h", "r"), ("w", "pad_left", "dilation_w", "s")):
        assume(p[size] + 2 * p[pad] > p[dilated] * (p[window] - 1))
    if kind == "max":
        p["pass"] = draw(st.sampled_from(["forward", "grad_input", "gather"]))
        p["offset_bytes"] = draw(st.sampled_from([0, 1, 1, 2])) if p["pass"] == "forward" else draw(st.integers(1, 2))
    else:
        p["pass"] = draw(st.sampled_from(["forward", "grad_input"]))
        p["count_include_pad"] = draw(st.booleans())
        p["divisor"] = draw(st.sampled_from([0, 0, 0, 7, -2]))
    x_sizes, y_sizes = sizes_of(_C.parse_problem(_C.problem_text(p)))
    for name, sizes in (("x_strides", x_sizes), ("y_strides", y_sizes), ("offset_strides", y_sizes)):
        if name == "offset_strides" and not p.get("offset_bytes"):
            continue
        order = draw(st.sampled_from([(3, 2, 1, 0), (1, 3, 2, 0)] * 2 + [(2, 3, 1, 0), (0, 1, 2, 3)]))
        gaps = draw(st.sampled_from([(0, 0, 0, 0), (0, 0, 0, 0), (0, 3, 0, 0), (1, 0, 2, 0)]))
        strides, step = [0] * 4, 1
        for dim, gap in zip(order, gaps):
            strides[dim] = step
            step *= sizes[dim] + gap
        p[name] = strides
    return _C.problem_text(p)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(text=problems(), threads=st.integers(1, 3), isa_index=st.integers(0, 2), seed=st.integers(0, 99))
def test_any_problem_in_any_layout(text, threads, isa_index, seed):
    before = _C.cpu_isa()
    _C.set_cpu_isa(_C.cpu_isas()[isa_index % len(_C.cpu_isas())])
    try:
        check(text, threads=threads, seed=seed)
    finally:
        _C.set_cpu_isa(before)


def test_refusals_are_in_words():
    average = "avgpool n1c1h8w8 r1s1 st1 pd0 dl1 f32 nchw fwd adaptive p2q2"
    reasons = {a["name"]: a["reason"] for a in _C.explain(average) if a["device"] == "cpu"}
    assert reasons["avg_pool"] == "takes windows of one size, not adaptive ones"
    assert reasons["max_pool"] == "computes maxima only"
    u8 = {a["name"]: a for a in _C.explain("avgpool n1c1h8w8 r2s2 st2 pd0 dl1 u8 nchw fwd")}
    assert not u8["avg_pool"]["ok"] and "u8" in u8["avg_pool"]["reason"]


def test_the_checks_can_fail():
    """Offsets that are right but for one are found out, and so is a value."""
    p = _C.parse_problem("maxpool n1c1h4w4 r2s2 st2 pd0 dl1 f32 nchw fwd off8")
    x = torch.arange(16.0).view(1, 1, 4, 4)
    best, offsets = maxima(x, p)
    assert best.tolist() == [[[5, 7, 13, 15]]] and offsets.tolist() == [[[3, 3, 3, 3]]]
    assert positions(offsets, p).tolist() == [[[5, 7, 13, 15]]]
    assert not identical(best, best + torch.tensor([0, 0, 0, 1e-3]))
    assert identical(torch.tensor([math.nan]), torch.tensor([math.nan]))
