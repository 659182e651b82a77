"""Every CUDA row of the table in the emulator, on every pass, dtype and layout, against torch in float64.

Twice: with every access checked (bounds, unwritten reads, races; simt.py) on small problems, and as fastconv itself runs
them, on the sizes of real networks.
"""

import ctypes
from functools import partial

import pool_kernels
import pytest
import simt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import PASSES, check_conv, does, rows
from test_conv_rows import SHAPES, problems

from fastconv import _C

DTYPES = ("f32", "f64", "f16", "bf16")
CONV_ROWS = [row["name"] for row in rows("conv", "simulated")]
POOL_ROWS = [row["name"] for row in rows("pool", "simulated")]
EPILOGUES = {"fwd": " scale bias relu", "grad_input": " relu", "grad_weight": " bias relu"}

# Layers of networks, cut in channels so that a thread at a time gets through them: first layers, 3x3, 1x1, grouped,
# depthwise with a multiplier.
REAL = [
    "n1c3h61w67 k64r7s7 st2 pd3 dl1 g1",
    "n1c3h63w59 k96r11s11 st4 pd0 dl1 g1",
    "n2c3h32w32 k64r3s3 st1 pd1 dl1 g1",
    "n1c64h28w28 k96r3s3 st1 pd1 dl1 g1",
    "n1c130h14w14 k72r1s1 st1 pd0 dl1 g1",
    "n2c32h14w14 k48r5s5 st1 pd2 dl1 g1",
    "n1c64h15w13 k128r3s3 st2 pd1 dl1 g2",
    "n2c48h28w28 k48r3s3 st1 pd1 dl1 g48",
    "n1c24h29w31 k48r5s5 st2 pd2 dl1 g24",
    "n1c192h19w19 k8r5s5 st1 pd2 dl1 g1",
    "n4c16h64w64 k128r3s3 st1 pd1 dl1 g1",  # implicit_gemm's tile of 128 x 128
    "n4c8h96w96 k64r3s3 st1 pd1 dl1 g1",  # ... of 128 x 64
]  # fmt: skip


def row_named(name):
    return next(row for row in rows("conv", "simulated") if row["name"] == name)


def emulated(text, row, addresses, threads=1, prepacked=False):
    _C.run_row(text, row, addresses, threads, prepacked, "simulated")


def refusal(text, name, device="simulated"):
    """Why the row does not take the problem, "" if it does."""
    answer = next(a for a in _C.explain(text, device=device) if a["name"] == name and a["device"] == device)
    return "" if answer["ok"] else answer["reason"]


def check_if_supported(text, name, run, device="simulated", **how):
    reason = refusal(text, name, device)
    if reason:
        assert len(reason) > 8
        return False
    check_conv(text, name, run=run, **how)
    return True


def cases(name, dtype, shapes):
    for pass_ in PASSES:
        if does(row_named(name), pass_, dtype):
            for i, shape in enumerate(shapes):
                yield i, f"conv {shape} {dtype} {('nchw', 'nhwc')[i % 2]} {pass_}{EPILOGUES[pass_]}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CONV_ROWS)
def test_small_problems_with_every_access_checked(name, dtype):
    ran = 0
    for i, text in cases(name, dtype, SHAPES):
        ran += check_if_supported(text, name, partial(simt.run_row, seed=i, eager=i % 2 == 0), seed=i)
    assert ran


@pytest.mark.parametrize("name", CONV_ROWS)
def test_both_layouts_and_every_epilogue_checked(name):
    ran = 0
    for i, shape in enumerate(SHAPES):
        for pass_, flags in (("fwd", ("", " bias", " scale relu res")), ("grad_input", ("",)), ("grad_weight", ("", " bias"))):
            if not does(row_named(name), pass_, "f32"):
                continue
            for j, flag in enumerate(flags):
                layout = ("nhwc", "nchw", "x:nhwc w:nchw y:nchw")[(i + j) % 3]
                ran += check_if_supported(f"conv {shape} f32 {layout} {pass_}{flag}", name, simt.run_row, seed=i)
    assert ran


# Larger than SHAPES, so that tiles have an inside, and strides, dilation and groups meet them.
TILES = [
    "n1c12h18w40 k24r3s3 st1 pd1 dl1 g1",
    "n2c3h21w37 k20r7s7 st2 pd3 dl1 g1",
    "n1c3h31w35 k16r11s11 st4 pd2 dl1 g1",
    "n2c10h12w12 k18r1s1 st1 pd0 dl1 g1",
    "n1c16h17w19 k32r3s3 st2 pd1 dl1 g2",
    "n1c9h20w23 k11r3s3 st1 pd2 dl2 g1",
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", ["any", "tiled", "weight"])
def test_every_form_of_direct_checked(form, dtype):
    """The plan takes a form by its cost, `any` for most small problems: here each runs, or says that it does not."""
    ran = 0
    for i, text in cases("direct", dtype, SHAPES + TILES):
        if (form == "weight") > (" grad_weight" in text) or (form == "tiled") > (" grad_weight" not in text):
            continue
        try:
            check_conv(text, "direct", run=lambda t, row, *args: simt.run_row(t, f"direct:{form}", *args, seed=i), seed=i)
            ran += 1
        except simt.Refused as reason:
            assert form == "tiled", reason
    assert ran >= 12


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("name", CONV_ROWS)
def test_real_layers(name, dtype):
    assert sum(check_if_supported(text, name, emulated, seed=i) for i, text in cases(name, dtype, REAL))


@pytest.mark.parametrize("name", CONV_ROWS)
def test_integer_values_give_exact_sums(name):
    for i, shape in enumerate(SHAPES):
        for pass_ in PASSES:
            if does(row_named(name), pass_, "f32"):
                check_if_supported(f"conv {shape} f32 nchw {pass_}", name, emulated, seed=i, exact=True)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(text=problems(), seed=st.integers(0, 3))
def test_any_problem_in_any_layout(text, seed):
    if " i32 " in text:
        assert all(not a["ok"] for a in _C.explain(text, device="simulated"))
        return
    assert check_if_supported(text, "direct", partial(simt.run_row, seed=seed), seed=seed)  # takes everything
    for name in CONV_ROWS:
        if name != "direct":
            check_if_supported(text, name, partial(simt.run_row, seed=seed), seed=seed)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", POOL_ROWS)
def test_pools_with_every_access_checked(name, dtype):
    row = next(row for row in rows("pool", "simulated") if row["name"] == name)
    for pass_ in pool_kernels.PASSES:
        if not does(row, pass_, dtype):
            continue
        for layout in ("nchw", "nhwc"):
            for i, text in enumerate(pool_kernels.texts(name, pass_, dtype, layout)):
                pool_kernels.check(text, seed=i, run=partial(simt.run_row, seed=i))


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize(
    "text",
    [
        "maxpool n1c16h56w56 r3s3 st2 pd1 dl1 f32 {} fwd off8",
        "maxpool n2c24h28w28 r3s3 st1 pd1 dl1 f32 {} grad_input off8",
        "maxpool n1c8h112w112 r2s2 st2 pd0 dl1 f32 {} fwd",
        "maxpool n1c3h40w44 r17s17 st1 pd8 dl1 f32 {} fwd off16",
        "avgpool n3c70h7w7 r7s7 st7 pd0 dl1 f32 {} fwd",
        "avgpool n1c5h64w60 r64s60 st1 pd0 dl1 f32 {} fwd",
        "avgpool n3c70h7w7 r7s7 st7 pd0 dl1 f32 {} grad_input",
        "avgpool n1c40h35w35 r3s3 st1 pd1 dl1 bf16 {} fwd nopad",
        "maxpool n1c24h130w200 r1s1 st1 pd0 dl1 f16 {} fwd off8 adaptive p37q31",  # more than a block's shared memory
        "maxpool n2c16h70w90 r1s1 st1 pd0 dl1 f32 {} grad_input off8 adaptive p7q11",
        "maxpool n1c5h40w44 r1s1 st1 pd0 dl1 f32 {} fwd off16 adaptive p3q2",
        "maxpool n1c5h40w44 r1s1 st1 pd0 dl1 f32 {} grad_input off16 adaptive p3q2",
        "maxpool n1c5h40w44 r1s1 st1 pd0 dl1 bf16 {} gather off32 adaptive p3q2",
        "avgpool n2c64h13w17 r1s1 st1 pd0 dl1 bf16 {} fwd adaptive p6q5",
        "avgpool n1c8h150w120 r1s1 st1 pd0 dl1 f32 {} fwd adaptive p4q7",  # threads share a window
        "avgpool n1c40h21w23 r1s1 st1 pd0 dl1 f16 {} grad_input adaptive p25q4",
        "lppool n1c24h56w56 r3s3 st2 pd0 dl1 f32 {} fwd ceil norm2",
        "lppool n1c16h113w131 r2s3 st2 pd0 dl1 bf16 {} fwd norm3",
        "lppool n2c16h28w30 r3s2 st2 pd0 dl1 f32 {} grad_input ceil norm2",
        "lppool n2c16h28w30 r3s2 st2 pd0 dl1 f16 {} grad_input norm2.5",
    ],
)
def test_real_pools(text, layout):
    pool_kernels.check(text.format(layout), run=emulated)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(["maxpool", "avgpool"]), sizes=st.tuples(*[st.integers(1, 20)] * 4), c=st.integers(1, 17),
    dtype=st.sampled_from(DTYPES), layout=st.sampled_from(["nchw", "nhwc"]), backward=st.booleans(), seed=st.integers(0, 3),
)  # fmt: skip
def test_any_adaptive_window(kind, sizes, c, dtype, layout, backward, seed):
    h, w, p, q = sizes
    off = f" off{(8, 16, 32)[seed % 3]}" if kind == "maxpool" and (backward or seed) else ""
    if off == " off8" and h * w > 255:
        off = " off16"
    text = f"{kind} n2c{c}h{h}w{w} r1s1 st1 pd0 dl1 {dtype} {layout} {'grad_input' if backward else 'fwd'}{off}"
    pool_kernels.check(f"{text} adaptive p{p}q{q}", seed=seed, run=partial(simt.run_row, seed=seed))


@pytest.mark.parametrize("norm", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_lp_pools_of_zero_and_negative_sums(dtype, norm):
    for layout in ("nchw", "nhwc"):
        for pass_ in ("fwd", "grad_input"):
            text = f"lppool n2c16h9w13 r3s2 st2 pd0 dl1 {dtype} {layout} {pass_} ceil norm{norm}"
            pool_kernels.check_lp(text, integers=True, run=simt.run_row)


@pytest.mark.parametrize("norm", [1, 2, 3, 2.5, -1])
def test_lp_pools_of_nan_and_infinity(norm):
    g = torch.Generator().manual_seed(0)
    x = torch.randint(1, 4, (1, 8, 9, 12), generator=g).double()
    dice = torch.rand(x.shape, generator=g)
    for i, special in enumerate((torch.nan, torch.inf, -torch.inf, 0.0)):
        x[(dice > 0.03 * i) & (dice < 0.03 * (i + 1))] = special
    for layout, kind in (("nchw", torch.contiguous_format), ("nhwc", torch.channels_last)):
        given, y = x.float().contiguous(memory_format=kind), torch.empty(1, 8, 4, 6).contiguous(memory_format=kind)
        text = f"lppool n1c8h9w12 r2s2 st2 pd0 dl1 f32 {layout} fwd norm{norm}"
        simt.run_row(text, "lp_pool", {"x": given.data_ptr(), "y": y.data_ptr()})
        expected = torch.nn.functional.lp_pool2d(x, norm, 2)
        assert expected.isnan().any() and expected.isfinite().any()
        torch.testing.assert_close(y, expected.float(), equal_nan=True)


@pytest.mark.parametrize("window", ["r3s2 st2x1 pd1 dl1x2 {} {} fwd off{}", "r1s1 st1 pd0 dl1 {} {} fwd off{} adaptive p4q9"])
def test_indices(window):
    """The positions that torch's return_indices gives; -1 for none, and for an offset that leads out of the plane."""
    for bits, dtype in pool_kernels.OFFSETS.items():
        for layout, kind in (("nchw", torch.contiguous_format), ("nhwc", torch.channels_last)):
            text = f"maxpool n2c5h7w11 {window.format('f32', layout, bits)}"
            p = _C.parse_problem(text)
            x = pool_kernels.special_values((2, 5, 7, 11), torch.float32, torch.Generator().manual_seed(bits))
            _, offsets = pool_kernels.maxima(x, p)
            offsets = offsets.view(2, 5, p["p"], p["q"]).clone()
            offsets[0, 0, 0, :2] = torch.tensor([-1, p["r"] * p["s"]])
            positions = pool_kernels.positions(offsets.flatten(2), p).view(offsets.shape)
            stored = offsets.to(dtype).contiguous(memory_format=kind)
            assert torch.equal(simt.indices(text, stored), torch.where(positions == 7 * 11, -1, positions))


@pytest.mark.parametrize("name", CONV_ROWS)
def test_thread_order_does_not_change_a_bit(name):
    """All rows are deterministic: whatever order threads and blocks run in, the bits are the same."""
    for i, text in cases(name, "f32", SHAPES[:4]):
        if refusal(text, name):
            continue
        results = []
        for seed in (0, 5, 6):
            check_conv(text, name, seed=i, run=lambda *args, seed=seed: results.append(bits(*args, seed=seed)))
        assert results[0] == results[1] == results[2], text


def bits(text, row, addresses, threads, prepacked, seed):
    """Runs the row; the bytes of what it wrote."""
    simt.run_row(text, row, addresses, threads, prepacked, seed=seed)
    p, facts = _C.parse_problem(text), _C.problem_facts(text)
    sizes = {
        "forward": ("y", p["n"] * p["k"] * facts["p"] * facts["q"]),
        "grad_input": ("x", p["n"] * p["c"] * p["h"] * p["w"]),
        "grad_weight": ("weight", p["k"] * (p["c"] // p["groups"]) * p["r"] * p["s"]),
    }
    name, count = sizes[p["pass"]]
    return ctypes.string_at(addresses[name], count * facts["element_bytes"])


def test_a_refusing_row_says_why():
    text = "conv n1c4h8w8 k4r3s3 st1 pd1 dl1 g1 f32 nchw fwd"
    assert "depthwise" in CONV_ROWS and len(refusal(text, "depthwise")) > 8
    x = torch.zeros(1)
    with pytest.raises(simt.Refused):
        simt.run_row(text, "depthwise", {"x": x.data_ptr(), "weight": x.data_ptr(), "y": x.data_ptr()})
