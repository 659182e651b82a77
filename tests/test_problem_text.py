"""The canonical text of problems: parse(text(p)) == p, one text for each problem, errors that name the word."""

import math

import pytest
import torch  # before _C, which links against its libraries
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fastconv import _C

DTYPES = ["f32", "f64", "f16", "bf16", "u8", "i8", "i16", "i32", "i64"]
LAYOUTS = ["nchw", "nhwc"]
FROM_OUTPUT = ["none", "relu", "leaky_relu", "relu6", "elu", "sigmoid", "tanh"]
ACTIVATIONS = [*FROM_OUTPUT, "silu", "gelu", "hardswish"]
EXAMPLE = "conv n32c64h56w56 k128r3s3 st1 pd1 dl1 g1 bf16 nhwc fwd bias relu"
LONG_EXAMPLE = (
    "conv n2c8h9w11 k4r3s2 st2x1 pd1,0,2,1 dl1x2 g4 f32 x:nchw w:nhwc y:900,70,9,2 a:nchw fwd "
    "scale bias leaky_relu:0.2 res tf32 acc:fast det al:2,6,5"
)
POOL_EXAMPLE = "maxpool n1c64h224w224 r2s2 st2 pd0 dl1 f32 nchw fwd off8"
LONG_POOL_EXAMPLE = "avgpool n2c3h9w11 r3s2 st2x1 pd1 dl1 f16 x:nhwc y:999,1,33,3 grad_input ceil nopad div-7"


def canonical(sizes, strides):
    """Strides that carry no information are zero: of dimensions of size 1, and of empty tensors."""
    return tuple(0 if size == 1 or 0 in sizes else stride for size, stride in zip(sizes, strides))


def dense(sizes, layout):
    """torch's own strides of a dense tensor, canonicalised."""
    memory_format = torch.channels_last if layout == "nhwc" else torch.contiguous_format
    return canonical(sizes, torch.empty(sizes, device="meta", memory_format=memory_format).stride())


def some_strides(draw, sizes):
    if draw(st.booleans()):
        return dense(sizes, draw(st.sampled_from(LAYOUTS)))
    return canonical(sizes, draw(st.tuples(*[st.integers(0, 10**6)] * 4)))


@st.composite
def convolutions(draw):
    small = st.integers(1, 5)
    groups = draw(st.integers(1, 3))
    p = dict(kind="conv", groups=groups, n=draw(st.integers(0, 4)), c=groups * draw(small), k=groups * draw(small))
    for size, window, stride, dilation, pads in (
        ("h", "r", "stride_h", "dilation_h", ("pad_top", "pad_bottom")),
        ("w", "s", "stride_w", "dilation_w", ("pad_left", "pad_right")),
    ):
        p[window], p[stride], p[dilation] = draw(small), draw(small), draw(small)
        for pad in pads:
            p[pad] = draw(st.integers(0, 3))
        least = max(0, p[dilation] * (p[window] - 1) + 1 - sum(p[pad] for pad in pads))
        p[size] = draw(st.integers(least, least + 12))
    p["pass"] = draw(st.sampled_from(["forward", "grad_input", "grad_weight"]))
    p["dtype"] = draw(st.sampled_from(DTYPES))
    p["math"] = draw(st.sampled_from(["ieee", "tf32", "fp32_3xtf32"])) if p["dtype"] == "f32" else "ieee"
    p["accuracy"] = draw(st.sampled_from(["torch", "fast", "fastest"]))
    p["activation"] = draw(st.sampled_from(ACTIVATIONS if p["pass"] == "forward" else FROM_OUTPUT))
    has_parameter = p["activation"] in ("leaky_relu", "elu")
    p["activation_parameter"] = draw(st.floats(0, allow_infinity=False)) if has_parameter else 0.0
    p["bias"] = draw(st.booleans())
    p["residual"] = p["pass"] == "forward" and draw(st.booleans())
    p["scale"] = p["pass"] == "forward" and p["dtype"][0] in "fb" and draw(st.booleans())
    p["max_pool"] = False
    if p["pass"] == "forward" and not p["residual"] and min(conv_sizes(p)[2][2:]) > 1:
        p["max_pool"] = draw(st.booleans())
    p["deterministic"] = draw(st.booleans())
    for align in ("x_align", "weight_align", "y_align"):
        p[align] = draw(st.integers(0, 6))
    x, weight, y = conv_sizes(p)
    p["x_strides"], p["weight_strides"] = some_strides(draw, x), some_strides(draw, weight)
    p["y_strides"] = some_strides(draw, y)
    has_aux = p["residual"] or (p["pass"] != "forward" and p["activation"] != "none")
    p["aux_strides"] = some_strides(draw, y) if has_aux else (0, 0, 0, 0)
    if draw(st.booleans()):  # the common case: one layout for all
        layout = draw(st.sampled_from(LAYOUTS))
        p["x_strides"], p["weight_strides"], p["y_strides"] = dense(x, layout), dense(weight, layout), dense(y, layout)
        p["aux_strides"] = p["y_strides"] if has_aux else (0, 0, 0, 0)
    return p


def out_size(size, pads, window, stride, dilation):
    return (size + pads - dilation * (window - 1) - 1) // stride + 1


def conv_sizes(p):
    rows = out_size(p["h"], p["pad_top"] + p["pad_bottom"], p["r"], p["stride_h"], p["dilation_h"])
    columns = out_size(p["w"], p["pad_left"] + p["pad_right"], p["s"], p["stride_w"], p["dilation_w"])
    x, weight = (p["n"], p["c"], p["h"], p["w"]), (p["k"], p["c"] // p["groups"], p["r"], p["s"])
    window = 2 if p["max_pool"] else 1
    return x, weight, (p["n"], p["k"], rows // window, columns // window)


@st.composite
def pools(draw):
    p = dict(kind=draw(st.sampled_from(["max", "avg", "lp"])), n=draw(st.integers(0, 4)), c=draw(st.integers(1, 5)))
    is_max = p["kind"] == "max"
    is_lp = p["kind"] == "lp"
    p["norm"] = draw(st.floats(allow_nan=False).filter(bool)) if is_lp else 0.0
    p["adaptive"] = not is_lp and draw(st.booleans())
    p["ceil_mode"] = not p["adaptive"] and draw(st.booleans())
    small = st.integers(1, 4)
    for size, window, stride, dilation, pad in (
        ("h", "r", "stride_h", "dilation_h", "pad_top"),
        ("w", "s", "stride_w", "dilation_w", "pad_left"),
    ):
        p[window], p[stride], p[dilation] = draw(small), draw(small), draw(small) if is_max else 1
        reach = p[dilation] * (p[window] - 1) + 1
        p[pad] = 0 if is_lp else draw(st.integers(0, p[window] // 2))
        least = max(1, reach - 2 * p[pad])
        p[size] = draw(st.integers(least, least + 12))
    p["pass"] = draw(st.sampled_from(["forward", "grad_input"] + ["gather"] * is_max))
    p["dtype"] = draw(st.sampled_from(DTYPES))
    p["offset_bytes"] = draw(st.sampled_from([0, 1, 2, 4] if p["pass"] == "forward" else [1, 2, 4])) if is_max else 0
    divides = p["kind"] == "avg" and not p["adaptive"]
    p["count_include_pad"] = not divides or draw(st.booleans())
    p["divisor"] = draw(st.sampled_from([0, 1, 3, -2, 2**62])) if divides else 0
    if p["adaptive"]:
        p["p"], p["q"] = draw(st.integers(0, 9)), draw(st.integers(0, 9))
        adapt(p)
    else:
        p["p"], p["q"] = pool_output(p)
    x, y = (p["n"], p["c"], p["h"], p["w"]), (p["n"], p["c"], p["p"], p["q"])
    p["x_strides"], p["y_strides"] = some_strides(draw, x), some_strides(draw, y)
    p["offset_strides"] = some_strides(draw, y) if p["offset_bytes"] else (0, 0, 0, 0)
    return p


def adapt(p):
    """The canonical window of an adaptive pool, found by looking at every window; equal ones make a plain pool."""
    for size, out, window, stride, dilation, pad in (
        ("h", "p", "r", "stride_h", "dilation_h", "pad_top"),
        ("w", "q", "s", "stride_w", "dilation_w", "pad_left"),
    ):
        lengths = [-(-(i + 1) * p[size] // p[out]) - i * p[size] // p[out] for i in range(p[out])]
        p[window], p[stride], p[dilation], p[pad] = max(lengths, default=1), 1, 1, 0
    if p["p"] and p["q"] and p["h"] % p["p"] == 0 and p["w"] % p["q"] == 0:
        p["adaptive"], p["stride_h"], p["stride_w"] = False, p["r"], p["s"]


def pool_output(p):
    """The output size that torch itself computes."""
    x = torch.empty(1, 1, p["h"], p["w"], device="meta")
    return torch.nn.functional.max_pool2d(
        x, (p["r"], p["s"]), (p["stride_h"], p["stride_w"]), (p["pad_top"], p["pad_left"]),
        (p["dilation_h"], p["dilation_w"]), p["ceil_mode"],
    ).shape[2:]  # fmt: skip


@settings(deadline=None, max_examples=300)
@given(st.one_of(convolutions(), pools()))
def test_parse_of_text_is_the_problem(problem):
    text = _C.problem_text(problem)
    parsed = _C.parse_problem(text)
    assert parsed == problem  # every field, so both directions are right
    assert _C.problem_text(parsed) == text


@settings(deadline=None, max_examples=200)
@given(convolutions(), convolutions())
def test_different_convolutions_have_different_texts(a, b):
    # Two random problems differ nearly everywhere; taking over half of the fields makes near misses likely too.
    mixed = {**a, **{key: b[key] for key in ("accuracy", "deterministic", "x_align", "weight_align", "y_align")}}
    assert (_C.problem_text(a) == _C.problem_text(mixed)) == (a == mixed)


def test_every_field_shows_in_the_text():
    problem = _C.parse_problem(LONG_EXAMPLE)
    changed = {
        "n": 3, "c": 12, "h": 10, "w": 12, "k": 8, "r": 2, "s": 1, "stride_h": 1, "stride_w": 2, "pad_top": 2,
        "pad_left": 2, "pad_bottom": 1, "pad_right": 0, "dilation_h": 2, "dilation_w": 3, "groups": 2,
        "x_strides": (1, 2, 3, 4), "weight_strides": (1, 2, 3, 4), "y_strides": (1, 2, 3, 4),
        "aux_strides": (1, 2, 3, 4), "math": "ieee", "accuracy": "torch", "activation": "sigmoid",
        "activation_parameter": 0.25,
        "scale": False, "bias": False, "deterministic": False, "x_align": 6, "weight_align": 5, "y_align": 6,
    }  # fmt: skip
    texts = {_C.problem_text(problem)}
    for key, value in changed.items():
        assert problem[key] != value
        texts.add(_C.problem_text({**problem, key: value}))
    assert len(texts) == 1 + len(changed)
    # These exclude some of the fields above, or each other.
    assert set(problem) - set(changed) == {"kind", "dtype", "pass", "residual", "max_pool"}


def test_a_fused_max_pool_halves_the_output():
    written = "conv n2c8h9w11 k4r3s3 st1 pd1 dl1 g1 maxpool2 f32 nhwc fwd bias relu acc:fast"
    problem = _C.parse_problem(written)
    assert problem["max_pool"] and problem["y_strides"] == dense((2, 4, 4, 5), "nhwc")
    assert _C.problem_text(problem) == written
    facts, plain = _C.problem_facts(written), _C.problem_facts(written.replace(" maxpool2", ""))
    assert facts["macs"] == plain["macs"]
    assert plain["minimum_bytes"] - facts["minimum_bytes"] == 4 * 2 * 4 * (9 * 11 - 4 * 5)
    for changed, message in (
        (written.replace("fwd bias relu", "grad_input"), "belongs to the forward pass only"),
        (written.replace("relu", "relu res"), "goes without a residual"),
        (written.replace("h9w11", "h1w11"), "window is larger than the output"),
    ):
        with pytest.raises(ValueError, match=message):
            _C.parse_problem(changed)


def test_fields_of_an_example():
    problem = _C.parse_problem(LONG_EXAMPLE)
    # h: (9 + 1 + 2 - 3) / 2 + 1 = 5; w: 11 + 0 + 1 - 2 * 1 - 1 + 1 = 10
    expected = dict(
        kind="conv", n=2, c=8, h=9, w=11, k=4, r=3, s=2, stride_h=2, stride_w=1, pad_top=1, pad_left=0, pad_bottom=2,
        pad_right=1, dilation_h=1, dilation_w=2, groups=4, dtype="f32", scale=True, bias=True, activation="leaky_relu", activation_parameter=0.2, residual=True, max_pool=False,
        math="tf32", accuracy="fast", deterministic=True, x_align=2, weight_align=6, y_align=5,
        x_strides=(8 * 9 * 11, 9 * 11, 11, 1), weight_strides=(2 * 3 * 2, 1, 2 * 2, 2), y_strides=(900, 70, 9, 2),
        aux_strides=(4 * 5 * 10, 5 * 10, 10, 1),
    )  # fmt: skip
    expected["pass"] = "forward"
    assert problem == expected


@pytest.mark.parametrize(
    "written, canonical_text",
    [
        (EXAMPLE, EXAMPLE),
        (LONG_EXAMPLE, LONG_EXAMPLE),
        (POOL_EXAMPLE, POOL_EXAMPLE),
        (LONG_POOL_EXAMPLE, LONG_POOL_EXAMPLE),
        ("avgpool n1c512h13w13 r3s3 st1 pd0 dl1 f32 nchw fwd adaptive p6q6",) * 2,
        ("lppool n1c64h56w56 r2s2 st2 pd0 dl1 f32 nchw fwd ceil norm2.5",) * 2,
        # windows of an adaptive pool follow from the sizes; equal ones make it a plain pool
        ("maxpool n1c2h13w12 r1s1 st2 pd0 dl1 f32 nchw fwd off8 adaptive p6q6",
         "maxpool n1c2h13w12 r3s2 st1 pd0 dl1 f32 nchw fwd off8 adaptive p6q6"),
        ("avgpool n1c512h14w14 r1s1 st1 pd0 dl1 f32 nchw fwd adaptive p7q7",
         "avgpool n1c512h14w14 r2s2 st2 pd0 dl1 f32 nchw fwd"),
        # torch's defaults, spelled out
        ("conv n1c2h8w8 k2r3s3 st1 pd1 dl1 g1 f32 nchw fwd leaky_relu",
         "conv n1c2h8w8 k2r3s3 st1 pd1 dl1 g1 f32 nchw fwd leaky_relu:0.01"),
        ("conv n1c2h8w8 k2r3s3 st1 pd1 dl1 g1 f32 nchw grad_input bias elu",
         "conv n1c2h8w8 k2r3s3 st1 pd1 dl1 g1 f32 nchw grad_input bias elu:1"),
        # the shortest spelling wins
        ("conv n1c2h8w8 k2r3s3 st2x2 pd1,1,1,1 dl1x1 g1 f32 x:nhwc w:nhwc y:nhwc fwd",
         "conv n1c2h8w8 k2r3s3 st2 pd1 dl1 g1 f32 nhwc fwd"),
        ("conv n1c2h8w8 k2r3s3 st1 pd0,2,0,2 dl1 g1 f32 nchw fwd",
         "conv n1c2h8w8 k2r3s3 st1 pd0x2 dl1 g1 f32 nchw fwd"),
        # one channel: both orders hold, and nchw is the one that is written
        ("conv n2c1h8w8 k1r3s3 st1 pd1 dl1 g1 f32 nhwc fwd", "conv n2c1h8w8 k1r3s3 st1 pd1 dl1 g1 f32 nchw fwd"),
        # only x can tell the orders apart, so its order is everybody's
        ("conv n2c3h4w5 k1r4s5 st1 pd0 dl1 g1 f32 x:nhwc w:nhwc y:nchw fwd",
         "conv n2c3h4w5 k1r4s5 st1 pd0 dl1 g1 f32 nhwc fwd"),
        # strides that spell a dense order, and strides that mean nothing
        ("conv n1c2h3w4 k2r1s1 st1 pd0 dl1 g1 f32 x:77,12,4,1 w:2,1,9,9 y:0,12,4,1 fwd",
         "conv n1c2h3w4 k2r1s1 st1 pd0 dl1 g1 f32 nchw fwd"),
        ("conv n0c2h3w4 k2r1s1 st1 pd0 dl1 g1 f32 x:1,2,3,4 w:nchw y:nchw fwd",
         "conv n0c2h3w4 k2r1s1 st1 pd0 dl1 g1 f32 nchw fwd"),
        # the auxiliary operand is named only if it differs from y
        ("conv n1c2h3w4 k2r1s1 st1 pd0 dl1 g1 f32 nchw a:nchw grad_input relu",
         "conv n1c2h3w4 k2r1s1 st1 pd0 dl1 g1 f32 nchw grad_input relu"),
        ("maxpool n1c2h4w4 r2s2 st2 pd0 dl1 f32 x:nchw y:nchw o:nchw grad_input off8",
         "maxpool n1c2h4w4 r2s2 st2 pd0 dl1 f32 nchw grad_input off8"),
    ],
)  # fmt: skip
def test_canonical_spelling(written, canonical_text):
    assert _C.problem_text(_C.parse_problem(written)) == canonical_text
    assert _C.parse_problem(canonical_text) == _C.parse_problem(written)


@pytest.mark.parametrize("text", [EXAMPLE, LONG_EXAMPLE, POOL_EXAMPLE, LONG_POOL_EXAMPLE])
def test_a_wrong_word_is_named(text):
    words = text.split()
    for i, word in enumerate(words[1:], 1):
        for wrong in ("?!", word + "!", "x" + word, word.upper() if word.upper() != word else "A"):
            with pytest.raises(ValueError, match="fastconv: bad problem text") as error:
                _C.parse_problem(" ".join([*words[:i], wrong, *words[i + 1 :]]))
            assert f"word {i + 1} '{wrong}': expected " in str(error.value) or layout_is_named(i, words, error, wrong)


def layout_is_named(i, words, error, wrong):
    """A wrong second layout word may be taken for the pass that follows the first."""
    return words[i][1:2] == ":" and f"'{wrong}': expected " in str(error.value)


@pytest.mark.parametrize("text", [EXAMPLE, POOL_EXAMPLE])
def test_a_missing_word_is_an_error(text):
    words = text.split()
    required = words.index("fwd") + 1
    for count in range(required):
        with pytest.raises(ValueError, match="expected "):
            _C.parse_problem(" ".join(words[:count]))
    for i in range(required):
        with pytest.raises(ValueError, match="expected "):
            _C.parse_problem(" ".join(words[:i] + words[i + 1 :]))
    _C.parse_problem(" ".join(words[:required]))


@pytest.mark.parametrize(
    "text, word",
    [
        ("conv n1c2h8w8 k2r3s3 st1 pd1 dl1 g1 f32 nchw fwd relu bias", "'bias': expected the end"),
        ("conv n1c2h8w8 k2r3s3 st1 pd1 dl1 g1 f32 nchw fwd bias bias", "word 12 'bias'"),
        ("conv n1c2h8w8 k2r3s3 st1 pd1 dl1 g1 f32 nchw fwd tf32 3xtf32", "'3xtf32'"),
        ("conv n1c2h8w8 k2r3s3 st1 pd1 dl1 g1 f32 nchw fwd al:6,6", "'al:6,6': expected"),
        ("conv n1c2h8w8 k2r3s3 st1 pd1 dl1 g1 f32 nchw fwd al:6,6,7", "'al:6,6,7': expected"),
        ("conv n1c2h8w8 k2r3s3 st1 pd1 dl1 g1 f32 nchw gather", "'gather': expected"),
        ("conv n1c2h8w8 k2r3s3 st1 pd1,2 dl1 g1 f32 nchw fwd", "'pd1,2': expected"),
        ("conv n1c2h8w8 k2r3s3 st1 pd1,2,3 dl1 g1 f32 nchw fwd", "'pd1,2,3': expected"),
        ("conv n1c2h8w8 k2r3s3 st1 pd1x2x3x4 dl1 g1 f32 nchw fwd", "'pd1x2x3x4': expected"),
        ("conv n1c2h8w8 k2r3s3 st1,1,1,1 pd1 dl1 g1 f32 nchw fwd", "'st1,1,1,1': expected"),
        ("conv n-1c2h8w8 k2r3s3 st1 pd1 dl1 g1 f32 nchw fwd", "'n-1c2h8w8': expected"),
        ("conv n01c2h8w8 k2r3s3 st1 pd1 dl1 g1 f32 nchw fwd", "'n01c2h8w8': expected"),
        ("conv n1c2h8w8 k2r3s3 st1 pd1 dl1 g1 f32 nchw y:nchw fwd", "'y:nchw': expected"),
        ("conv n1c2h8w8 k2r3s3 st1 pd1 dl1 g1 f32 x:nchw y:nchw fwd", "'y:nchw': expected w:"),
        ("conv n1c2h8w8 k2r3s3 st1 pd1 dl1 g1 f32 x:1,2,3 w:nchw y:nchw fwd", "'x:1,2,3': expected"),
        ("maxpool n1c2h8w8 r2s2 st2 pd0 dl1 f32 nchw fwd off9", "'off9': expected"),
        ("avgpool n1c2h8w8 r2s2 st2 pd0 dl1 f32 nchw fwd div0", "'div0': expected"),
        ("avgpool n1c2h8w8 r2s2 st2 pd0 dl1 f32 nchw fwd adaptive", "end: expected p<number>q<number>"),
        ("avgpool n1c2h8w8 r2s2 st2 pd0 dl1 f32 nchw fwd p4q4", "'p4q4': expected"),
        ("l2pool n1c2h8w8", "'l2pool': expected"),
        ("lppool n1c2h8w8 r2s2 st2 pd0 dl1 f32 nchw fwd", "end: expected norm<number>"),
        ("lppool n1c2h8w8 r2s2 st2 pd0 dl1 f32 nchw fwd norm", "'norm': expected norm<number>"),
        ("conv n1c2h8w8 k2r3s3 st1 pd1 dl1 g1 f32 nchw fwd relu:0.1", "'relu:0.1': expected the end"),
        ("conv n1c2h8w8 k2r3s3 st1 pd1 dl1 g1 f32 nchw fwd leaky_relu:x", "'leaky_relu:x': expected the end"),
        ("", "expected 'conv'"),
    ],
)
def test_bad_text(text, word):
    with pytest.raises(ValueError) as error:
        _C.parse_problem(text)
    assert word in str(error.value)


@pytest.mark.parametrize(
    "text, reason",
    [
        ("conv n1c2h8w8 k2r3s3 st0 pd1 dl1 g1 f32 nchw fwd", "stride_h is 0"),
        ("conv n1c2h8w8 k2r3s0 st1 pd1 dl1 g1 f32 nchw fwd", "s is 0"),
        ("conv n1c2h8w8 k2r3s3 st1 pd1 dl1x0 g1 f32 nchw fwd", "dilation_w is 0"),
        ("conv n1c4h8w8 k2r3s3 st1 pd1 dl1 g0 f32 nchw fwd", "groups is 0"),
        ("conv n1c4h8w8 k2r3s3 st1 pd1 dl1 g4 f32 nchw fwd", "must divide"),
        ("conv n1c2h8w2 k2r3s3 st1 pd0 dl1 g1 f32 nchw fwd", "window is larger than the padded input along w"),
        # -1 / 3 + 1 = 1 in C++, where torch's division gives 0
        ("conv n1c2h2w8 k2r3s3 st3 pd0 dl1 g1 f32 nchw fwd", "window is larger than the padded input along h"),
        ("conv n1c2h8w8 k2r3s3 st1 pd1 dl1 g1 f64 nchw fwd tf32", "f32 only"),
        ("conv n1c2h8w8 k2r3s3 st1 pd1 dl1 g1 f32 nchw grad_input gelu", "does not follow from its output"),
        ("conv n1c2h8w8 k2r3s3 st1 pd1 dl1 g1 f32 nchw fwd leaky_relu:-1", "at least 0"),
        ("conv n1c2h8w8 k2r3s3 st1 pd1 dl1 g1 f32 nchw fwd elu:inf", "finite"),
        ("lppool n1c2h8w8 r2s2 st2 pd1 dl1 f32 nchw fwd norm2", "no padding"),
        ("lppool n1c2h8w8 r2s2 st2 pd0 dl1 f32 nchw fwd norm0", "other than 0"),
        ("lppool n1c2h8w8 r2s2 st2 pd0 dl1 f32 nchw fwd norm2 adaptive p2q2", "never adaptive"),
        ("avgpool n1c2h8w8 r2s2 st2 pd0 dl1 f32 nchw fwd div3 adaptive p2q2", "no divisor"),
        ("conv n1c2h8w8 k2r3s3 st1 pd1 dl1 g1 f32 nchw grad_input res", "residual"),
        ("conv n1c2h8w8 k2r3s3 st1 pd1 dl1 g1 f32 nchw a:nhwc fwd", "a:..."),
        ("maxpool n1c2h8w8 r2s2 st2 pd2 dl3 f32 nchw fwd", "more than half"),
        ("maxpool n1c2h8w8 r9s9 st2 pd0 dl1 f32 nchw fwd", "smaller than 1 x 1"),
        ("maxpool n1c2h8w8 r2s2 st2 pd0 dl1 f32 nchw grad_input", "needs window offsets"),
        ("maxpool n1c2h20w20 r16s16 st2 pd0 dl1 f32 nchw fwd off8", "cannot count"),
        ("maxpool n1c2h8w8 r2s2 st2 pd0 dl1 f32 nchw fwd nopad", "belong to avgpool"),
        ("avgpool n1c2h8w8 r2s2 st2 pd0 dl2 f32 nchw fwd", "no dilation"),
        ("avgpool n1c2h8w8 r2s2 st2 pd0 dl1 f32 nchw fwd off8", "no window offsets"),
        ("avgpool n1c2h8w8 r2s2 st2 pd0 dl1 f32 nchw fwd ceil adaptive p2q2", "no ceil_mode"),
    ],
)
def test_unsound_problem(text, reason):
    with pytest.raises(ValueError) as error:
        _C.parse_problem(text)
    assert reason in str(error.value)


BIG = 2**63 - 1


@pytest.mark.parametrize(
    "text",
    [
        "conv n9223372036854775808c2h8w8 k2r3s3 st1 pd1 dl1 g1 f32 nchw fwd",  # 2^63
        "conv n1c2h8w8 k2r3s3 st1 pd99999999999999999999 dl1 g1 f32 nchw fwd",
        f"conv n{BIG}c2h8w8 k2r3s3 st1 pd1 dl1 g1 f32 nchw fwd",
        f"conv n1c2h8w8 k2r3s3 st1 pd{BIG} dl1 g1 f32 nchw fwd",
        f"conv n1c2h8w8 k2r3s3 st1 pd1 dl{BIG} g1 f32 nchw fwd",
        f"conv n1c2h8w8 k2r{BIG}s3 st1 pd1 dl2 g1 f32 nchw fwd",
        f"conv n0c{2**32}h{2**32}w8 k2r3s3 st1 pd1 dl1 g1 f32 nchw fwd",  # empty, but its strides would overflow
        f"conv n1c{2**21}h{2**20}w{2**20} k1r1s1 st1 pd0 dl1 g1 f64 nchw fwd",  # 2^61 elements of 8 bytes
        f"conv n1c{2**20}h{2**10}w{2**10} k{2**20}r3s3 st1 pd1 dl1 g1 f32 nchw fwd",  # only FLOPs overflow
        f"conv n2c2h8w8 k2r3s3 st1 pd1 dl1 g1 f32 x:{BIG},1,1,1 w:nchw y:nchw fwd",
        f"maxpool n1c2h8w8 r2s2 st{BIG} pd1 dl1 f32 nchw fwd ceil",
        f"maxpool n1c2h8w8 r2s2 st1 pd{BIG} dl1 f32 nchw fwd",
        f"maxpool n1c2h8w8 r{BIG}s2 st1 pd1 dl{BIG} f32 nchw fwd",
        f"maxpool n{2**31}c{2**31}h2w2 r2s2 st1 pd1 dl1 f32 nchw fwd",
        f"avgpool n1c2h8w8 r2s2 st1 pd1 dl1 f32 nchw fwd div{BIG + 1}",
    ],
)
def test_overflow_is_an_error(text):
    with pytest.raises(ValueError, match="fit"):
        _C.parse_problem(text)


def test_the_largest_sizes_that_fit():
    assert _C.problem_facts(f"conv n1c1h1w{2**60} k1r1s1 st1 pd0 dl1 g1 u8 nchw fwd")["flops"] == 2**61
    with pytest.raises(ValueError, match="fit"):
        _C.parse_problem(f"conv n1c1h1w{2**62} k1r1s1 st1 pd0 dl1 g1 u8 nchw fwd")


WORDS = sorted({word for text in (EXAMPLE, LONG_EXAMPLE, POOL_EXAMPLE, LONG_POOL_EXAMPLE) for word in text.split()})


@settings(deadline=None, max_examples=300)
@given(st.one_of(st.text(), st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join)))
def test_any_text_parses_or_raises(text):
    try:
        problem = _C.parse_problem(text)
    except ValueError:
        return
    assert _C.parse_problem(_C.problem_text(problem)) == problem


@settings(deadline=None, max_examples=100)
@given(convolutions())
def test_facts_of_a_convolution(problem):
    facts = _C.problem_facts(_C.problem_text(problem))
    x, weight, y = conv_sizes(problem)
    outputs = conv_sizes(problem | {"max_pool": False})[2]
    assert (facts["p"], facts["q"]) == outputs[2:]
    assert facts["macs"] == math.prod(outputs) * math.prod(weight[1:])
    assert facts["flops"] == 2 * facts["macs"]
    size = {"f64": 8, "i64": 8, "f32": 4, "i32": 4, "f16": 2, "bf16": 2, "i16": 2, "u8": 1, "i8": 1}[problem["dtype"]]
    has_aux = problem["residual"] or (problem["pass"] != "forward" and problem["activation"] != "none")
    moved = math.prod(x) + math.prod(weight) + math.prod(y) * (1 + has_aux)
    moved += problem["scale"] * problem["k"]
    moved += problem["bias"] * problem["c" if problem["pass"] == "grad_input" else "k"]
    assert facts["minimum_bytes"] == size * moved
    for operand, sizes in (("x", x), ("weight", weight), ("y", y)):
        strides = problem[f"{operand}_strides"]
        orders = [layout for layout in LAYOUTS if strides == dense(sizes, layout)]
        assert facts[f"{operand}_layout"] == {0: "strided", 1: orders[0] if orders else "", 2: "both"}[len(orders)]


def test_padded_convolution_matches_torch():
    x = torch.empty(2, 8, 9, 11, device="meta")
    weight = torch.empty(4, 2, 3, 2, device="meta")
    y = torch.nn.functional.conv2d(x, weight, stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=4)
    facts = _C.problem_facts("conv n2c8h9w11 k4r3s2 st2x1 pd1x2 dl1x2 g4 f32 nchw fwd")
    assert (facts["p"], facts["q"]) == tuple(y.shape[2:])


@settings(deadline=None, max_examples=100)
@given(pools())
def test_pool_output_size_is_derived_as_in_torch(problem):
    assume(not problem["adaptive"])
    fields = {key: problem[key] for key in problem if key not in ("p", "q")}
    complete = _C.pool_problem(fields)
    assert (complete["p"], complete["q"]) == tuple(pool_output(problem))
    with pytest.raises(ValueError, match="the output size is"):
        _C.pool_problem({**problem, "p": problem["p"] + 1})


def test_dicts_take_defaults_and_layouts():
    shape = dict(n=2, c=4, h=8, w=9, k=6, r=3, s=3)
    assert _C.problem_text(shape) == "conv n2c4h8w9 k6r3s3 st1 pd0 dl1 g1 f32 nchw fwd"
    assert _C.problem_text({**shape, "layout": "nhwc"}) == "conv n2c4h8w9 k6r3s3 st1 pd0 dl1 g1 f32 nhwc fwd"
    mixed = {**shape, "layout": "nhwc", "x_strides": [288, 72, 9, 1]}  # given strides win over the layout
    assert _C.problem_text(mixed) == "conv n2c4h8w9 k6r3s3 st1 pd0 dl1 g1 f32 x:nchw w:nhwc y:nhwc fwd"
    assert _C.conv_problem(mixed) == _C.parse_problem(_C.problem_text(mixed))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"n": 2**63}, "'n': expected an integer that fits into 64 bits"),
        ({"n": 1.5}, "'n': expected an integer"),
        ({"colour": 1}, "no field 'colour'"),
        ({"p": 1}, "no field 'p'"),
        ({"dtype": "float32"}, "'dtype': expected one of f32, f64"),
        ({"pass": "backward"}, "'pass': expected one of forward"),
        ({"x_strides": (1, 2)}, "'x_strides': expected four"),
        ({"bias": 2}, "'bias': expected True or False"),
        ({"scale": True, "pass": "grad_input"}, "a scale belongs to the forward pass"),
        ({"scale": True, "dtype": "i32"}, "none for integers"),
        ({"x_align": 7}, "alignment"),
        ({"layout": "nwhc"}, "'layout': expected nchw or nhwc"),
        ({"kind": "min"}, "'kind': expected one of conv"),
        ({"kind": "lp"}, "the norm of LP pooling"),
        ({"activation_parameter": "x"}, "'activation_parameter': expected a number"),
        ({"n": -1}, "n is -1"),
        ({"x_strides": (-1, 1, 1, 1)}, "stride of x is negative"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(ValueError) as error:
        _C.problem_text(fields)
    assert message in str(error.value)
