"""Every pooling row of the table, on every ISA, pass, dtype and layout: maxima against the definition, averages and LP
pools against torch in float64.

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
from kernels import DTYPES, Operand, does, rows
from pool_kernels import (
    ADAPTIVE_SHAPES,
    FLOATS,
    LP_SHAPES,
    MAX_SHAPES,
    PASSES,
    check,
    check_lp,
    check_max,
    identical,
    maxima,
    offsets_inside,
    positions,
    sizes_of,
    special_values,
    texts,
)

from fastconv import _C

DATA = pathlib.Path(__file__).parent / "data" / "pool2d_shapes.csv"


@pytest.fixture
def isa(request):
    """Taken as an argument of tests; "best" is the one in use without."""
    before = _C.cpu_isa()
    _C.set_cpu_isa(request.param if request.param != "best" else before)
    yield request.param
    _C.set_cpu_isa(before)


# Integers have no vector loops, so one ISA stands for all.
ISAS_AND_DTYPES = [(isa, dtype) for dtype in DTYPES for isa in (_C.cpu_isas() if dtype in FLOATS else ["best"])]


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("isa, dtype", ISAS_AND_DTYPES, indirect=["isa"])
@pytest.mark.parametrize("row", rows("pool"), ids=lambda row: row["name"])
def test_dtypes_and_passes(row, dtype, layout, isa):
    wanted = [pass_ for pass_ in PASSES if does(row, pass_, dtype)]
    assert wanted or dtype not in FLOATS and (row["name"], dtype) not in (("max_pool", dtype), ("avg_pool", "i64"))
    for pass_ in wanted:
        for i, text in enumerate(texts(row["name"], pass_, dtype, layout)):
            check(text, seed=i, threads=1 + i % 3)


@pytest.mark.parametrize("isa", _C.cpu_isas(), indirect=True)
def test_lp_of_negative_and_zero_sums(isa):
    """As torch: the root of a negative sum is NaN, unless the norm is 1; a window whose sum is 0 has no gradient."""
    for i, shape in enumerate(LP_SHAPES):
        for pass_ in ("fwd", "grad_input"):
            layout = ("nchw", "nhwc", "x:nchw y:nhwc")[i % 3]
            check_lp(f"lppool {shape} {FLOATS[i % 4]} {layout} {pass_} ceil norm{1 + i % 3}", integers=True, seed=i)


def test_lp_of_a_zero_window_with_a_norm_below_1():
    """Its gradient is 0, where torch multiplies 0 and infinity."""
    text = "lppool n1c1h2w2 r2s2 st2 pd0 dl1 f32 nchw {} norm0.5"
    x, y, dy, dx = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1), torch.ones(1, 1, 2, 2)
    _C.run_row(text.format("fwd"), "lp_pool", {"x": x.data_ptr(), "y": y.data_ptr()})
    assert y.item() == 0
    addresses = {"x": dx, "y": dy, "input": x, "output": y}
    _C.run_row(text.format("grad_input"), "lp_pool", {name: t.data_ptr() for name, t in addresses.items()})
    assert not dx.any()


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


def cases_of(name, *shapes):
    """Shapes as problems of a row: what comes before the dtype, and flags. LP pools have no padding, but a norm; the
    others come adaptive too."""
    kind = name.replace("_", "")
    for i, shape in enumerate(shapes):
        if name == "lp_pool":
            yield f"lppool {shape.replace('pd1', 'pd0')}", f" norm{(2, 3, 1)[i % 3]}"
        else:
            yield f"{kind} {shape}", ""
            yield f"{kind} {shape.split()[0]} r1s1 st1 pd0 dl1", " adaptive p5q7"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("row", rows("pool"), ids=lambda row: row["name"])
def test_any_strides(row, dtype, layout):
    """Views of all kinds. What is written must not overlap itself, so operands with zero strides are only read."""
    for pass_ in row["passes"]:
        written = layout.split()[0 if pass_ == "grad_input" else 1]
        if ":0," in written or row["name"] == "lp_pool" and pass_ == "grad_input" and "y:0," in layout:
            continue  # (LP pools read the forward's output too, whose elements differ)
        word = {"forward": "fwd"}.get(pass_, pass_)
        offsets = " off8" if row["name"] == "max_pool" else ""
        for o in ("", " o:nhwc", " o:nchw") if offsets else ("",):
            for head, flags in cases_of(row["name"], "n2c5h9w11 r3s3 st1 pd1 dl1", "n1c20h13w40 r2s2 st2 pd0 dl1"):
                check(f"{head} {dtype} {layout}{o} {word}{offsets}{flags}", threads=2)


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_offsets_of_16_bits(layout, pass_):
    for dtype in ("f32", "f16", "u8"):
        check_max(f"maxpool n1c2h20w21 r16s16 st3x2 pd8 dl1 {dtype} {layout} {pass_} off16")
        check_max(f"maxpool n1c2h67w61 r1s1 st1 pd0 dl1 {dtype} {layout} {pass_} off16 adaptive p3q2")


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


def test_adaptive_windows_are_torchs():
    """The definition that the rows are held to, against torch's values and indices."""
    for seed, (shape, windows) in enumerate(ADAPTIVE_SHAPES):
        p = _C.parse_problem(f"maxpool {shape} f32 nchw fwd adaptive {windows}")
        x = special_values(sizes_of(p)[0], torch.float32, torch.Generator().manual_seed(seed))
        y, indices = F.adaptive_max_pool2d(x, (p["p"], p["q"]), return_indices=True)
        best, offsets = maxima(x, p)
        assert identical(y.flatten(2), best) and torch.equal(indices.flatten(2), positions(offsets, p))


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("row", rows("pool"), ids=lambda row: row["name"])
def test_thread_counts_give_the_same_bits(row, layout):
    """Large enough for every task split, units and bands of rows."""
    for head, flags in cases_of(row["name"], "n1c3h211w307 r3s3 st2 pd1 dl1", "n2c37h61w53 r2s2 st1 pd1 dl1"):
        for pass_ in row["passes"]:
            word = {"forward": "fwd"}.get(pass_, pass_)
            bits = "" if row["name"] != "max_pool" else " off16" if "adaptive" in flags else " off8"
            text = f"{head} f32 {layout} {word}{bits}{flags}"
            p = _C.parse_problem(text)
            x_sizes, y_sizes = sizes_of(p)
            g = torch.Generator().manual_seed(0)
            data = {"x": torch.randn(x_sizes, generator=g), "y": torch.randn(y_sizes, generator=g)}
            given = {"input": Operand(x_sizes, p["x_strides"], torch.float32, torch.rand(x_sizes, generator=g))}
            given["output"] = Operand(y_sizes, p["y_strides"], torch.float32, torch.rand(y_sizes, generator=g))
            results = []
            for threads in (1, 2, 3, 7):
                x = Operand(x_sizes, p["x_strides"], torch.float32, data["x"])
                y = Operand(y_sizes, p["y_strides"], torch.float32, data["y"])
                offsets = offsets_inside(torch.arange(y.view.numel()).view(y_sizes) % (p["r"] * p["s"]), p)
                o = Operand(y_sizes, p["y_strides"], (torch.uint8, torch.int16)[p["offset_bytes"] == 2], offsets)
                operands = {"x": x, "y": y, "offsets": o, **given}
                _C.run_row(text, row["name"], {name: t.address for name, t in operands.items()}, threads)
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
    kind = draw(st.sampled_from(["max", "max", "avg", "avg", "lp"]))
    adaptive = kind != "lp" and draw(st.booleans())
    dilation = st.integers(1, 3) if kind == "max" else st.just(1)
    p = dict(
        kind=kind, n=draw(st.integers(1, 3)), c=draw(st.integers(1, 70)), h=draw(st.integers(1, 20)),
        w=draw(st.integers(1, 70)), r=draw(st.integers(1, 6)), s=draw(st.integers(1, 6)),
        stride_h=draw(st.integers(1, 4)), stride_w=draw(st.integers(1, 4)), dilation_h=draw(dilation),
        dilation_w=draw(dilation), ceil_mode=draw(st.booleans()),
        dtype=draw(st.sampled_from(["f32", "f64", "f16", "bf16"] + ["i64"] * (kind != "lp"))),
    )  # fmt: skip
    if adaptive:
        p.update(adaptive=True, p=draw(st.integers(1, 24)), q=draw(st.integers(1, 40)), ceil_mode=False)
    if kind == "lp":
        p["norm"] = draw(st.sampled_from([1, 2, 2, 3, 0.5, -1, 2.5]))
    p["pad_top"], p["pad_left"] = (draw(st.integers(0, p[window] // 2 * (kind != "lp"))) for window in "rs")
    for size, pad, dilated, window in (("h", "pad_top", "dilation_h", "r"), ("w", "pad_left", "dilation_w", "s")):
        assume(p[size] + 2 * p[pad] > p[dilated] * (p[window] - 1))
    if kind == "max":
        p["pass"] = draw(st.sampled_from(["forward", "grad_input", "gather"]))
        p["offset_bytes"] = draw(st.sampled_from([0, 1, 1, 2])) if p["pass"] == "forward" else draw(st.integers(1, 2))
        if adaptive and p["offset_bytes"] == 1:
            positions = (p["h"] // p["p"] + 2) * (p["w"] // p["q"] + 2)  # no window is larger
            p["offset_bytes"] = 1 if positions < 256 else 2
    else:
        p["pass"] = draw(st.sampled_from(["forward", "grad_input"]))
        if kind == "avg":
            p["count_include_pad"] = draw(st.booleans())
            p["divisor"] = 0 if adaptive else draw(st.sampled_from([0, 0, 0, 7, -2]))
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
    powers = "lppool n1c1h8w8 r2s2 st2 pd0 dl1 f32 nchw fwd norminf"
    reasons = {a["name"]: a["reason"] for a in _C.explain(powers) if a["device"] == "cpu"}
    assert reasons["lp_pool"] == "takes finite norms; an infinite one is a maximum of magnitudes"
    assert reasons["avg_pool"] == "computes averages only"
    assert reasons["max_pool"] == "computes maxima only"
    u8 = {a["name"]: a for a in _C.explain("avgpool n1c1h8w8 r2s2 st2 pd0 dl1 u8 nchw fwd")}
    assert not u8["avg_pool"]["ok"] and "u8" in u8["avg_pool"]["reason"]


@pytest.mark.parametrize(
    "text, planted",
    [
        ("lppool n2c5h9w11 r3s3 st2 pd0 dl1 f32 nchw fwd norm2", ("norm2", "norm3")),
        ("lppool n2c5h9w11 r3s3 st2 pd0 dl1 f32 nhwc grad_input norm2", ("norm2", "norm1")),
        ("lppool n2c5h9w11 r3s3 st2 pd0 dl1 f32 nchw grad_input norm3", ("norm3", "norm2.9999")),
        ("avgpool n2c5h9w11 r1s1 st1 pd0 dl1 f32 nchw fwd adaptive p8q7",
         ("r1s1 st1 pd0 dl1 f32 nchw fwd adaptive p8q7", "r2s5 st1 pd0 dl1 f32 nchw fwd")),
        ("maxpool n2c5h9w11 r1s1 st1 pd0 dl1 f32 nchw fwd off8 adaptive p7q10",
         ("r1s1 st1 pd0 dl1 f32 nchw fwd off8 adaptive p7q10", "r3s2 st1 pd0 dl1 f32 nchw fwd off8")),
    ],
)  # fmt: skip
def test_a_planted_bug_is_seen(text, planted):
    """Another norm, and plain windows (of the same number) in place of adaptive ones."""
    check(text)
    with pytest.raises(AssertionError):
        check(text, run=lambda text, *rest: _C.run_row(text.replace(*planted), *rest))


def test_the_checks_can_fail():
    """Offsets that are right but for one are found out, and so is a value."""
    p = _C.parse_problem("maxpool n1c1h4w4 r2s2 st2 pd0 dl1 f32 nchw fwd off8")
    x = torch.arange(16.0).view(1, 1, 4, 4)
    best, offsets = maxima(x, p)
    assert best.tolist() == [[[5, 7, 13, 15]]] and offsets.tolist() == [[[3, 3, 3, 3]]]
    assert positions(offsets, p).tolist() == [[[5, 7, 13, 15]]]
    assert not identical(best, best + torch.tensor([0, 0, 0, 1e-3]))
    assert identical(torch.tensor([math.nan]), torch.tensor([math.nan]))
