"""fastconv.functional in eager mode: values against torch in float64, shapes, memory formats, autocast, forcing."""

import pytest
import torch
import torch.nn.functional as F

import fastconv
import fastconv.functional as FF

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def randn(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


@pytest.fixture(autouse=True)
def as_exact_as_torch():
    """Results are judged by PyTorch's own error: the class that promises as much."""
    before = fastconv.get_accuracy()
    fastconv.set_accuracy("torch")
    yield
    fastconv.set_accuracy(before)


def assert_as_accurate(ours, function, *args, **kwargs):
    """ours: at most twice the error of torch's own function in this dtype, plus half a unit of rounding.

    In float64 torch is the reference itself, with an error of its own: 8 units are allowed.
    """

    def double(value):
        floating = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.double() if floating else value

    theirs = function(*args, **kwargs)
    exact = function(*map(double, args), **{key: double(value) for key, value in kwargs.items()})
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    assert torch.equal(ours.isnan(), exact.isnan())
    error = (ours.double() - exact).abs().max()
    units = 8 if ours.dtype is torch.float64 else 0.5
    bound = 2 * (theirs.double() - exact).abs().max() + units * torch.finfo(ours.dtype).eps * exact.abs().max()
    assert error <= bound, f"error {error:.3e}, allowed {bound:.3e}"


CONVOLUTIONS = {
    "plain": ((2, 5, 11, 13), (7, 5, 3, 3), {}),
    "padded": ((2, 5, 11, 13), (7, 5, 3, 3), dict(padding=1)),
    "h and w differ": ((2, 5, 11, 13), (7, 5, 5, 2), dict(padding=(2, 0), stride=(1, 3), dilation=(1, 2))),
    "1x1": ((3, 6, 7, 5), (4, 6, 1, 1), dict(stride=2)),
    "groups": ((2, 6, 9, 8), (9, 2, 3, 3), dict(groups=3, padding=1)),
    "depthwise": ((2, 6, 9, 8), (12, 1, 3, 3), dict(groups=6, padding=1)),
    "dilated": ((1, 3, 17, 19), (4, 3, 3, 3), dict(dilation=4, padding=4)),
    "stride beyond window": ((2, 3, 17, 19), (4, 3, 2, 3), dict(stride=(5, 4))),
    "same": ((2, 3, 7, 8), (4, 3, 3, 5), dict(padding="same")),
    "same, even": ((2, 3, 7, 8), (4, 3, 2, 4), dict(padding="same")),
    "same, even, dilated": ((2, 3, 9, 8), (4, 3, 4, 2), dict(padding="same", dilation=(1, 3))),
    "valid": ((2, 3, 7, 8), (4, 3, 2, 4), dict(padding="valid", stride=2)),
    "lists of one": ((2, 3, 7, 8), (4, 3, 2, 2), dict(padding=[1], stride=[2], dilation=(1,))),
    "unbatched": ((3, 7, 8), (4, 3, 2, 4), dict(padding=1)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_conv2d(case, dtype):
    x_size, w_size, kwargs = CONVOLUTIONS[case]
    x, w, b = randn(*x_size, dtype=dtype), randn(*w_size, dtype=dtype), randn(w_size[0], dtype=dtype)
    assert_as_accurate(FF.conv2d(x, w, b, **kwargs), F.conv2d, x, w, b, **kwargs)
    assert_as_accurate(FF.conv2d(x, w, **kwargs), F.conv2d, x, w, **kwargs)

    def conv_relu(*args, **kwargs):
        return F.relu(F.conv2d(*args, **kwargs))

    assert_as_accurate(FF.conv2d_relu(x, w, b, **kwargs), conv_relu, x, w, b, **kwargs)
    assert torch.equal(FF.conv2d(x, w, b, activation="relu", **kwargs), FF.conv2d_relu(x, w, b, **kwargs))

    def residual_relu(x, w, b, r, **kwargs):
        return F.relu(F.conv2d(x, w, b, **kwargs) + r)

    r = randn(*F.conv2d(x, w, **kwargs).shape, dtype=dtype)
    ours = FF.conv2d(x, w, b, activation="relu", residual=r, **kwargs)
    assert_as_accurate(ours, residual_relu, x, w, b, r, **kwargs)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str)
def test_integers_wrap_as_in_torch(dtype):
    generator = torch.Generator().manual_seed(0)
    info = torch.iinfo(dtype)
    x, w, b = (
        torch.randint(max(info.min, -1000), min(info.max, 1000), size, generator=generator, dtype=dtype)
        for size in ((2, 4, 7, 9), (6, 2, 3, 3), (6,))
    )
    kwargs = dict(stride=2, padding=1, groups=2)
    assert torch.equal(FF.conv2d(x, w, b, **kwargs), F.conv2d(x, w, b, **kwargs))
    assert torch.equal(FF.max_pool2d(x, 3, 2, 1), F.max_pool2d(x, 3, 2, 1))


def test_nan_and_infinity_reach_the_output():
    x = randn(1, 2, 6, 6)
    x[0, 0, 2, 2], x[0, 1, 5, 5] = float("nan"), float("inf")
    w = randn(3, 2, 3, 3)
    for activation, reference in ((None, F.conv2d(x, w)), ("relu", F.relu(F.conv2d(x, w)))):
        torch.testing.assert_close(FF.conv2d(x, w, activation=activation), reference, equal_nan=True)
        assert reference.isnan().any()


def views(x):
    """The values of x behind strides of every sort."""
    n, c, h, w = x.shape
    around = torch.full((n + 1, 2 * c, h + 3, 2 * w), float("nan"))
    inside = around[1:, ::2, 1 : h + 1, ::2]
    inside.copy_(x)
    yield "sliced", inside
    yield "transposed", x.transpose(2, 3).contiguous().transpose(2, 3)
    yield "channels_last", x.contiguous(memory_format=torch.channels_last)
    yield "batch inside", x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
    odd = torch.empty(x.numel() + 1)[1:].view(x.shape)  # the address is not even a multiple of 8
    yield "misaligned", odd.copy_(x)


def test_views_are_read_as_they_are():
    x, w, b = randn(3, 4, 7, 9), randn(5, 4, 3, 3), randn(10)[::2]
    reference = F.conv2d(x, w, b, padding=1)
    for (name, x_view), (_, w_view) in zip(views(x), views(w)):
        for ours in (FF.conv2d(x_view, w, b, padding=1), FF.conv2d(x, w_view, b, padding=1)):
            torch.testing.assert_close(ours, reference, msg=lambda text: f"{name}: {text}")
        for pool, torchs in ((FF.max_pool2d, F.max_pool2d), (FF.avg_pool2d, F.avg_pool2d)):
            torch.testing.assert_close(pool(x_view, 3, 2, 1), torchs(x, 3, 2, 1), msg=lambda text: f"{name}: {text}")
    same = randn(1, 1, 1, 9).expand(3, 4, 7, 9)
    torch.testing.assert_close(FF.conv2d(same, w, b), F.conv2d(same, w, b))
    torch.testing.assert_close(FF.conv2d(x, w, randn(1).expand(5)), F.conv2d(x, w, randn(1).expand(5)))


POOLS = {
    "2": (dict(kernel_size=2), {}),
    "3 stride 2 pad 1": (dict(kernel_size=3, stride=2, padding=1), {}),
    "window (3, 2)": (dict(kernel_size=(3, 2), stride=(1, 2), padding=(1, 0)), {}),
    "lists of one": (dict(kernel_size=[3], stride=[2], padding=[1]), {}),
    "no stride": (dict(kernel_size=(2, 3), stride=[]), {}),
    "ceil": (dict(kernel_size=3, stride=2, padding=1, ceil_mode=True), {}),
    "ceil drops the last window": (dict(kernel_size=2, stride=3, padding=1, ceil_mode=True), {}),
}
MAX_POOLS = POOLS | {"dilated": (dict(kernel_size=3, stride=2, padding=1, dilation=(2, 1)), {})}
AVG_POOLS = POOLS | {
    "without padding": (dict(kernel_size=3, stride=2, padding=1, count_include_pad=False), {}),
    "without padding, ceil": (dict(kernel_size=3, stride=2, padding=1, ceil_mode=True, count_include_pad=False), {}),
    "divisor": (dict(kernel_size=3, stride=2, padding=1, divisor_override=4), {}),
    "negative divisor": (dict(kernel_size=3, stride=2, padding=1, divisor_override=-7), {}),
}


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("size", [(2, 5, 11, 14), (5, 11, 14)], ids=str)
@pytest.mark.parametrize("case", MAX_POOLS)
def test_max_pool2d(case, size, dtype):
    kwargs, _ = MAX_POOLS[case]
    x = randn(*size, dtype=dtype).round()  # with ties
    y, indices = F.max_pool2d(x, return_indices=True, **kwargs)
    assert torch.equal(FF.max_pool2d(x, **kwargs), y)
    ours, places = FF.max_pool2d(x, return_indices=True, **kwargs)
    assert torch.equal(ours, y) and torch.equal(places, indices) and places.dtype is torch.int64


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("size", [(2, 5, 11, 14), (5, 11, 14)], ids=str)
@pytest.mark.parametrize("case", AVG_POOLS)
def test_avg_pool2d(case, size, dtype):
    kwargs, _ = AVG_POOLS[case]
    x = randn(*size, dtype=dtype)
    assert_as_accurate(FF.avg_pool2d(x, **kwargs), F.avg_pool2d, x, **kwargs)


def test_avg_pool2d_of_int64():
    x = torch.arange(2 * 3 * 7 * 6).reshape(2, 3, 7, 6) - 100
    for kwargs in (dict(kernel_size=2), dict(kernel_size=3, padding=1, count_include_pad=False)):
        assert torch.equal(FF.avg_pool2d(x, **kwargs), F.avg_pool2d(x, **kwargs))


def test_max_pool2d_with_nan():
    x = randn(2, 3, 9, 9)
    x[randn(2, 3, 9, 9, seed=1) > 1] = float("nan")
    for ours, theirs in zip(
        FF.max_pool2d(x, 3, 2, 1, return_indices=True), F.max_pool2d(x, 3, 2, 1, return_indices=True)
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


def test_window_wholly_in_padding():
    """torch's index for such a window lies past the plane, and its backward corrupts the heap: never call that here."""
    x = randn(2, 3, 2, 11).requires_grad_()
    args = ((2, 5), (2, 3), (1, 2), (3, 1))  # the one row of windows reads rows -1 and 2: both are padding
    y, indices = FF.max_pool2d(x, *args, return_indices=True)
    assert torch.equal(y, F.max_pool2d(x.detach(), *args)) and (y == -float("inf")).all()
    assert (indices == -1).all()
    (gradient,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert torch.equal(gradient, torch.zeros_like(x))


# --- empty ---------------------------------------------------------------------------------------------------


def test_empty_batch():
    x, w, b = (t.requires_grad_() for t in (torch.zeros(0, 3, 8, 8), randn(6, 3, 3, 3), randn(6)))
    y = FF.conv2d_relu(x, w, b, stride=2)
    assert y.shape == (0, 6, 3, 3)
    y.sum().backward()
    assert x.grad.shape == x.shape and not w.grad.any() and not b.grad.any()
    for pool in (FF.max_pool2d, FF.avg_pool2d):
        y = pool(x, 2)
        assert y.shape == (0, 3, 4, 4)
        (gradient,) = torch.autograd.grad(y.sum(), x)
        assert gradient.shape == x.shape


def test_no_input_channels_give_no_output_channels():
    x, w, b = (t.requires_grad_() for t in (torch.zeros(2, 0, 8, 8), torch.zeros(6, 0, 3, 3), randn(6)))
    y = FF.conv2d(x, w, b)
    assert y.shape == F.conv2d(x, w, b).shape == (2, 0, 6, 6)
    y.sum().backward()
    assert x.grad.shape == x.shape and w.grad.shape == w.shape and torch.equal(b.grad, torch.zeros(6))


# --- memory format -------------------------------------------------------------------------------------------


def is_last(tensor):
    return tensor.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("x_last", [False, True])
@pytest.mark.parametrize("w_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_memory_format_of_convolution(x_last, w_last, dtype):
    formats = (torch.contiguous_format, torch.channels_last)
    x = randn(2, 3, 8, 8, dtype=dtype).contiguous(memory_format=formats[x_last]).requires_grad_()
    w = randn(6, 3, 3, 3, dtype=dtype).contiguous(memory_format=formats[w_last]).requires_grad_()
    theirs, ours = F.conv2d(x, w), FF.conv2d(x, w)
    assert ours.stride() == theirs.stride() and is_last(ours) == (x_last or w_last)
    gx, gw = torch.autograd.grad(ours, (x, w), torch.ones_like(ours))
    assert is_last(gx) == is_last(gw) == (x_last or w_last)


@pytest.mark.parametrize("size", [(2, 1, 6, 5), (2, 4, 1, 1), (1, 1, 3, 3), (2, 4, 6, 1)], ids=str)
@pytest.mark.parametrize("last", [False, True])
def test_memory_format_where_both_could_be_meant(size, last):
    x = randn(*size)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    w = randn(16, size[1], 1, 1)
    assert FF.conv2d(x, w).stride() == F.conv2d(x, w).stride()
    assert FF.max_pool2d(x, 1).stride() == F.max_pool2d(x, 1).stride()


@pytest.mark.parametrize("last", [False, True])
def test_memory_format_of_pools(last):
    x = randn(2, 3, 8, 8)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    x.requires_grad_()
    y, indices = FF.max_pool2d(x, 2, return_indices=True)
    average = FF.avg_pool2d(x, 2)
    gradients = [torch.autograd.grad(output, x, torch.ones_like(output))[0] for output in (y, average)]
    assert [is_last(tensor) for tensor in (y, indices, average, *gradients)] == [last] * 5


# --- autocast ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype):
    x, w, b = randn(2, 3, 8, 8), randn(6, 3, 3, 3).requires_grad_(), randn(6).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        y = FF.conv2d(x, w, b)
        assert y.dtype is dtype is F.conv2d(x, w, b).dtype
        assert FF.conv2d_relu(x, w, b).dtype is dtype
        assert FF.max_pool2d(x, 2).dtype is torch.float32 is F.max_pool2d(x, 2).dtype
        assert FF.avg_pool2d(x, 2).dtype is torch.float32 is F.avg_pool2d(x, 2).dtype
        assert FF.conv2d(x.double(), w.double()).dtype is torch.float64 is F.conv2d(x.double(), w.double()).dtype
        assert FF.conv2d(x.to(dtype), w).dtype is dtype is F.conv2d(x.to(dtype), w).dtype
        assert FF.conv2d(x, w, residual=randn(2, 6, 6, 6)).dtype is dtype
        expected = F.conv2d(x, w, b)
    torch.testing.assert_close(y, expected)
    y.float().square().sum().backward()  # outside of autocast, as torch asks
    gradients = w.grad, b.grad
    assert all(g.dtype is torch.float32 for g in gradients)
    w.grad = b.grad = None
    expected.float().square().sum().backward()
    for ours, theirs in zip(gradients, (w.grad, b.grad)):
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2 * theirs.abs().max().item())


def test_autocast_disabled_inside():
    x, w = randn(2, 3, 8, 8), randn(6, 3, 3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.autocast("cpu", enabled=False):
        assert FF.conv2d(x, w).dtype is torch.float32


# --- forcing -------------------------------------------------------------------------------------------------


class Recorder(torch.utils._python_dispatch.TorchDispatchMode):
    """The algorithm argument of every convolution pass that is called."""

    def __init__(self):
        super().__init__()
        self.algorithms = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "fastconv::conv2d" in str(func._schema):
            names = [a.name for a in func._schema.arguments]
            self.algorithms.append((func._opname, args[names.index("algorithm")]))
        return func(*args, **(kwargs or {}))


def test_forcing_reaches_backward():
    x, w = randn(1, 2, 5, 5).requires_grad_(), randn(3, 2, 3, 3).requires_grad_()
    with Recorder() as recorder:
        with fastconv.algorithm("direct"):
            y = FF.conv2d(x, w)
        y.sum().backward()  # outside: the choice was kept
        FF.conv2d(x, w)
        FF.conv2d(x, w, algorithm="direct")
        with fastconv.algorithm("direct"), fastconv.algorithm("auto"):
            FF.conv2d(x, w)
    passes = ["conv2d", "conv2d_grad_input", "conv2d_grad_weight"]
    assert recorder.algorithms == [(p, "direct") for p in passes] + [
        ("conv2d", "auto"),
        ("conv2d", "direct"),
        ("conv2d", "auto"),
    ]


def test_forcing_is_undone_by_an_exception():
    with pytest.raises(KeyError), fastconv.algorithm("direct"):
        raise KeyError
    with Recorder() as recorder:
        FF.conv2d(randn(1, 2, 5, 5), randn(3, 2, 3, 3))
    assert recorder.algorithms == [("conv2d", "auto")]


CPU_ROWS = [r["name"] for r in fastconv.ops.extension().algorithms() if (r["kind"], r["device"]) == ("conv", "cpu")]


@pytest.mark.parametrize("name", CPU_ROWS)
def test_each_algorithm_can_be_forced(name):
    accepted = 0
    for groups in (1, 4):
        x, w, b = randn(2, 4, 9, 8), randn(8, 4 // groups, 3, 3), randn(8)
        kwargs = dict(padding=1, groups=groups)
        with fastconv.algorithm(name):
            chosen = fastconv.explain(lambda: FF.conv2d(x, w, b, **kwargs)).chosen
        if chosen == [None]:
            with pytest.raises(NotImplementedError, match=f"^fastconv: no algorithm for conv n2c4h9w8 .*{name}"):
                FF.conv2d(x, w, b, algorithm=name, **kwargs)
            continue
        accepted += 1
        assert chosen == [name]
        ours = FF.conv2d(x, w, b, algorithm=name, **kwargs)
        assert_as_accurate(ours, F.conv2d, x, w, b, **kwargs)
        with fastconv.algorithm(name):
            assert torch.equal(FF.conv2d(x, w, b, **kwargs), ours)
    assert accepted


# --- explain -------------------------------------------------------------------------------------------------


def test_explain_text():
    text = "conv n1c64h56w56 k64r3s3 st1 pd1 dl1 g1 f32 nchw fwd bias"
    explanation = fastconv.explain(text)
    table = fastconv.ops.extension().algorithms()
    names = {row["name"] for row in table if row["kind"] == "conv" and row["device"] != "simulated"}
    assert {row["name"] for row in explanation.rows} == names
    (chosen,) = [row for row in explanation.rows if row["chosen"]]
    assert explanation.chosen == [chosen["name"]] and chosen["ok"] and chosen["cost"] > 0
    assert chosen["accuracy"] == "torch" and chosen["workspace_bytes"] >= 0
    for row in explanation.rows:
        assert row["problem"] == text and row["reason"]
        assert row["name"] in str(explanation) and row["reason"] in str(explanation)
    with fastconv.algorithm(chosen["name"]):
        (forced,) = [row for row in fastconv.explain(text).rows if row["chosen"]]
    assert forced["reason"].endswith("forced")  # after the form, for a row that has several


def test_explain_module_leaves_it_as_it_was():
    layers = fastconv.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Dropout(), fastconv.nn.MaxPool2d(2)
    model = torch.nn.Sequential(*layers)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    explanation = fastconv.explain(model, randn(2, 3, 9, 12))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    problems = list(dict.fromkeys((row["layer"], row["problem"]) for row in explanation.rows))
    assert problems == [
        ("0", "conv n2c3h9w12 k8r3s3 st1 pd0 dl1 g1 f32 nchw fwd bias"),
        ("3", "maxpool n2c8h7w10 r2s2 st2 pd0 dl1 f32 nchw fwd"),
    ]
    assert None not in explanation.chosen and len(explanation.chosen) == 2


def test_explain_function_spells_views():
    x, w = randn(2, 3, 9, 12).contiguous(memory_format=torch.channels_last), randn(4, 3, 3, 3)
    text = fastconv.explain(lambda: FF.conv2d_relu(x, w, padding="same")).rows[0]["problem"]
    assert "pd1" in text and "relu" in text
    fields = fastconv.ops.extension().parse_problem(text)
    assert fields["x_strides"] == x.stride() and fields["weight_strides"] == w.stride()


@pytest.mark.parametrize(
    "args, error", [(("no problem",), ValueError), ((3,), TypeError), ((torch.nn.ReLU(), torch.zeros(2)), ValueError)]
)
def test_explain_refuses(args, error):
    with pytest.raises(error, match="^fastconv: "):
        fastconv.explain(*args)


# --- the short way ----------------------------------------------------------------------------------------------


def test_plain_calls_take_the_short_way():
    """Else they would be as right, but 12 us slower: nothing but this would notice."""
    x, w, b = randn(1, 2, 6, 6), torch.nn.Parameter(randn(3, 2, 3, 3)), randn(3)
    conv = (x, w, b, None, 1, (1, 1), [1], 1, "relu", "auto", "torch")
    assert fastconv.ops.functional_conv2d(*conv) is None  # the weight wants a gradient
    with torch.no_grad():
        assert torch.equal(fastconv.ops.functional_conv2d(*conv), FF.conv2d_relu(x, w, b, padding=1))
    assert fastconv.ops.functional_conv2d(x, w.detach(), *conv[2:]) is not None
    assert fastconv.ops.functional_conv2d(x[0], w.detach(), *conv[2:]) is None  # unbatched
    with torch.autocast("cpu"):
        assert fastconv.ops.functional_conv2d(x, w.detach(), *conv[2:]) is None
    assert torch.equal(fastconv.ops.functional_max_pool2d(x, 2, None, 0, 1, False), FF.max_pool2d(x, 2))
    assert torch.equal(fastconv.ops.functional_avg_pool2d(x, 2, [], 0, False, True, None), FF.avg_pool2d(x, 2))
    for operator in fastconv.ops.OPERATORS:
        assert getattr(fastconv.ops, f"eager_{operator}")("not a tensor") is None
