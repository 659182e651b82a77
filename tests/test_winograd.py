"""Winograd's algorithm: its matrices in exact arithmetic, its stated error per accuracy class, tiles at every edge."""

import itertools
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from kernels import PASSES, check_conv

from fastconv import _C

CLASSES = ("torch", "fast", "fastest")
FLAG = {"torch": "", "fast": " acc:fast", "fastest": " acc:fastest"}
FORMS = _C.winograd_forms()


@pytest.fixture(params=_C.cpu_isas())
def isa(request):
    before = _C.cpu_isa()
    _C.set_cpu_isa(request.param)
    yield request.param
    _C.set_cpu_isa(before)


@pytest.fixture
def processor():
    """Sets what the cost models believe: always_fresh, for example; put back after the test."""
    before = _C.processor()
    yield lambda **changes: _C.set_processor(**{**before, **changes})
    _C.set_processor(**before)


def conv(x, weight, bias=None, pad=(1, 1, 1, 1), accuracy="fast", residual=None, activation="none", groups=1):
    return torch.ops.fastconv.conv2d(
        x, weight, bias, residual, [1, 1], list(pad), [1, 1], groups, activation, "winograd", accuracy
    )


# --- the matrices -----------------------------------------------------------------------------------------


def identity_error(a, g, b):
    """max |sum_j A^T[i][j] G[j][k] B^T[j][l] - [l == i + k]|, exactly, relative to the largest sum of magnitudes."""
    worst = Fraction(0)
    for i, k, l in itertools.product(range(len(a)), range(len(g[0])), range(len(b))):
        terms = [Fraction(a[i][j]) * Fraction(g[j][k]) * Fraction(b[j][l]) for j in range(len(b))]
        scale = max(Fraction(1), sum(abs(t) for t in terms))
        worst = max(worst, abs(sum(terms) - (l == i + k)) / scale)
    return worst


@pytest.mark.parametrize("outputs, taps, a, g, b", FORMS, ids=[f"F({f[0]},{f[1]})" for f in FORMS])
def test_matrices_compute_a_correlation(outputs, taps, a, g, b):
    n = outputs + taps - 1
    assert (len(a), len(g), len(b)) == (outputs, n, n)
    # Only G is rounded, to double: each entry by half a unit in the last place.
    assert identity_error(a, g, b) <= Fraction(1, 2**53)
    for matrix in (a, b):
        assert all(torch.tensor(v, dtype=torch.float32).item() == v for row in matrix for v in row), "exact in fp32"
    for matrix in range(3):
        planted = [[list(row) for row in m] for m in (a, g, b)]
        planted[matrix][0][0] += 1e-9
        assert identity_error(*planted) > Fraction(1, 2**40)


# --- errors ----------------------------------------------------------------------------------------------

# Odd sizes, h != w, maps smaller than a tile, asymmetric padding, channels and filters beside multiples of 16 and 32.
SHAPES = [
    "n1c1h5w7 k1r3s3 st1 pd1 dl1 g1",
    "n2c3h9w11 k33r3s3 st1 pd0 dl1 g1",
    "n1c16h1w1 k5r3s3 st1 pd1 dl1 g1",
    "n3c17h14w15 k31r3s3 st1 pd0,1,2,3 dl1 g1",
    "n1c64h28w29 k64r3s3 st1 pd1 dl1 g1",
    "n1c130h13w6 k70r3s3 st1 pd3,0,1,2 dl1 g1",
    "n5c8h7w7 k96r3s3 st1 pd2 dl1 g1",
    "n1c2h3w90 k17r3s3 st1 pd1x0 dl1 g1",
    "n2c12h10w9 k20r3s3 st1 pd1 dl1 g2",
    "n1c33h6w61 k40r5s5 st1 pd2 dl1 g1",
    "n2c70h17w12 k9r5s5 st1 pd0,4,3,1 dl1 g1",
]


def supported(text):
    answer = next(a for a in _C.explain(text) if a["name"] == "winograd")
    return answer["ok"]


@pytest.mark.parametrize("accuracy", CLASSES)
@pytest.mark.parametrize("pass_", PASSES)
def test_error_of_each_class(pass_, accuracy, isa, processor):
    """The filters are transformed before and kept, or by every block of tiles for itself, in turns."""
    ran = 0
    layouts = ("nchw", "nhwc", "x:nhwc w:nchw y:nchw", "x:nchw w:nhwc y:nhwc")
    flags = {
        "fwd": ("", " bias", " bias relu", " bias relu res"),
        "grad_input": ("", " relu"),
        "grad_weight": ("", " bias", " relu", " bias relu"),
    }[pass_]
    for i, shape in enumerate(SHAPES):
        for j, layout in enumerate(layouts):
            text = f"conv {shape} f32 {layout} {pass_}{flags[(i + j) % len(flags)]}{FLAG[accuracy]}"
            fresh = pass_ != "grad_weight" and (i + j) % 2 == 1
            processor(always_fresh=fresh, second_level=1 << 30)  # which has room for every kept filter
            if not supported(text):
                assert "r5s5" in shape and (accuracy == "torch" or pass_ == "grad_weight")
                continue
            chosen = next(a for a in _C.explain(text, algorithm="winograd") if a["chosen"])
            assert fresh == ("per block" in chosen["reason"]) and (not fresh or chosen["prepack_bytes"] == 0)
            check_conv(text, "winograd", threads=1 + (i + j) % 3, prepacked=j // 2 == 1, seed=i)
            ran += 1
    assert ran > 30


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@pytest.mark.parametrize("pass_", PASSES)
def test_half_types_round_as_torch_does(pass_, dtype, isa, processor):
    for i, shape in enumerate(SHAPES):
        layout = ("nchw", "nhwc")[i % 2]
        processor(always_fresh=i % 3 == 1, second_level=1 << 30)
        epilogue = {"fwd": " bias relu res", "grad_input": " relu", "grad_weight": " bias relu"}[pass_]
        check_conv(f"conv {shape} {dtype} {layout} {pass_}{epilogue}", "winograd", threads=2, seed=i)


def relative_error(result, expected):
    return ((result.double() - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("channels", [64, 320])
@pytest.mark.parametrize("accuracy, limit", [("fast", 2e-6), ("fastest", 1.2e-5)])
def test_error_of_many_outputs(accuracy, limit, channels):
    """The largest of 200 thousand errors; sums that ran over all 320 channels would exceed the bound."""
    g = torch.Generator().manual_seed(5)
    x = torch.randn(1, channels, 56, 56, generator=g)
    weight = torch.randn(64, channels, 3, 3, generator=g)
    error = relative_error(conv(x, weight, accuracy=accuracy), F.conv2d(x.double(), weight.double(), None, 1, 1))
    assert error <= limit


@pytest.mark.parametrize("accuracy, limit", [("torch", 6e-7), ("fast", 2e-6)])
def test_error_of_a_filter_gradient_over_many_tiles(accuracy, limit):
    """A sum of 12544 products per weight, of all signs; and its bias gradient."""
    g = torch.Generator().manual_seed(6)
    x, dy = torch.randn(1, 40, 112, 112, generator=g), torch.randn(1, 36, 112, 112, generator=g)
    dw, db = torch.ops.fastconv.conv2d_grad_weight(
        x, dy, None, [36, 40, 3, 3], True, [1, 1], [1, 1, 1, 1], [1, 1], 1, "none", "winograd", accuracy
    )
    blank = torch.zeros(36, 40, 3, 3, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(F.conv2d(x.double(), blank, None, 1, 1), blank, dy.double())
    assert relative_error(dw, expected) <= limit
    assert relative_error(db, dy.double().sum((0, 2, 3))) <= 1e-6


def test_small_integers_are_exact_in_class_torch(isa):
    """F(2x2,3x3) divides by 4 at most: sums of small integers come out to the last bit."""
    g = torch.Generator().manual_seed(1)
    x = torch.randint(-4, 5, (2, 19, 11, 14), generator=g).float()
    weight = torch.randint(-4, 5, (35, 19, 3, 3), generator=g).float()
    expected = F.conv2d(x.double(), weight.double(), None, 1, 1).float()
    assert torch.equal(conv(x, weight, accuracy="torch"), expected)


@pytest.mark.parametrize("power", [-60, 60])
def test_scaling_by_a_power_of_two_scales_every_bit(power):
    """Gradients may be huge or tiny: nothing in the algorithm has a scale of its own."""
    g = torch.Generator().manual_seed(2)
    dy, weight = torch.randn(2, 24, 15, 13, generator=g), torch.randn(24, 40, 3, 3, generator=g)

    def grad_input(dy):
        return torch.ops.fastconv.conv2d_grad_input(
            dy, weight, None, [2, 40, 15, 13], [1, 1], [1, 1, 1, 1], [1, 1], 1, "none", "winograd", "fast"
        )

    plain = grad_input(dy)
    assert torch.equal(grad_input(dy * 2.0**power), plain * 2.0**power)
    assert relative_error(plain, F.conv_transpose2d(dy.double(), weight.double(), None, 1, 1)) <= 2e-6


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_stays_in_its_tiles(value):
    """F(4x4,3x3) reads 6x6 inputs per tile: pixel (9, 6) belongs to tiles 1 and 2 down, 1 across."""
    g = torch.Generator().manual_seed(3)
    x, weight = torch.randn(1, 32, 20, 24, generator=g), torch.randn(32, 32, 3, 3, generator=g)
    clean = conv(x, weight)
    x[0, 3, 9, 6] = value
    spoiled = conv(x, weight)
    assert not spoiled[:, :, 8:11, 5:8].isfinite().any(), "the outputs whose window holds it"
    inside = torch.zeros(20, 24, dtype=torch.bool)
    inside[8:12, 4:8] = True
    assert torch.equal(spoiled[:, :, ~inside], clean[:, :, ~inside])


def test_threads_and_prepacking_change_no_bit():
    g = torch.Generator().manual_seed(4)
    x, weight = torch.randn(1, 48, 30, 31, generator=g), torch.randn(80, 48, 3, 3, generator=g)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results += [conv(x, weight) for _ in range(2)]  # the second may find its filter transformed
        assert all(torch.equal(r, results[0]) for r in results)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("pass_, flags, form", [
    ("fwd", "", "F(2x2,3x3)"),
    ("fwd", " acc:fast", "F(4x4,3x3)"),
    ("grad_input", " acc:fastest", "F(6x6,3x3)"),
    ("grad_weight", "", "F(3x3,2x2)"),
])  # fmt: skip
def test_explain_names_the_form(pass_, flags, form):
    text = f"conv n1c128h72w72 k128r3s3 st1 pd1 dl1 g1 f32 nhwc {pass_}{flags}"
    answer = next(a for a in _C.explain(text, algorithm="winograd") if a["name"] == "winograd")
    assert answer["reason"].startswith(f"{form}, ")  # where its filters are transformed depends on the processor


def test_refusals_say_why():
    def reason(shape, flags=""):
        text = f"conv n1c8h14w14 k8{shape} f32 nchw fwd{flags}"
        answer = next(a for a in _C.explain(text) if a["name"] == "winograd")
        assert not answer["ok"]
        return answer["reason"]

    assert "3x3 or 5x5 filter, not 3x2" in reason("r3s2 st1 pd1 dl1 g1")
    assert "stride 1, not 2x1" in reason("r3s3 st2x1 pd1 dl1 g1")
    assert "dilation 1, not 1x2" in reason("r3s3 st1 pd1 dl1x2 g1")
    assert "class 'torch'" in reason("r5s5 st1 pd2 dl1 g1")
    assert "per group, not 1 and 1" in reason("r3s3 st1 pd1 dl1 g8")
