"""conv [-> activation] -> MaxPool2d(2): what `convert` makes of it, and the function beneath."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastconv
import fastconv.functional as FF
from fastconv import conversion_report, convert, unconvert
from fastconv._fold import ConvMaxPool2d


def stage(pool=None, *between):
    return nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), *between, pool or nn.MaxPool2d(2, 2), nn.Conv2d(16, 4, 1))


def image(seed=0, **how):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(2, 8, 18, 21, generator=g, **how)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("between", [(), (nn.ReLU(),), (nn.GELU(),)], ids=["none", "relu", "gelu"])
def test_one_module_does_all_in_both_modes(between, last):
    model = stage(None, *copy.deepcopy(between))
    converted = convert(model)
    assert isinstance(converted[0], ConvMaxPool2d) and isinstance(converted[1], nn.Identity)
    assert "MaxPool2d(2) after it" in conversion_report(converted)
    x = image().contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    with torch.no_grad():
        y = converted(x)
        close(y, model(x))
        assert y.is_contiguous(memory_format=torch.channels_last) or not last
        close(converted(x[0]), model(x[0]))
    ours, theirs = image(1).requires_grad_(), image(1).requires_grad_()
    close(converted(ours), model(theirs))
    converted(ours).square().sum().backward()
    model(theirs).square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)
    for mine, its in zip(converted.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, its.grad, rtol=1e-3, atol=1e-3)
    back = unconvert(converted)
    assert [type(m) for m in back.modules()] == [type(m) for m in model.modules()]
    again = convert(converted)
    with torch.no_grad():
        close(again(x), y)


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(8, 12, 3), nn.Conv2d(12, 4, 3)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        return F.max_pool2d(self.conv2(x).relu(), (2, 2), stride=2)


class BadArgument(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.conv, self.options = nn.Conv2d(8, 12, 3), options

    def forward(self, x):
        return F.max_pool2d(self.conv(x), **self.options)


@pytest.mark.parametrize("options", [dict(kernel_size=[]), dict(kernel_size=2, padding=[]), dict(kernel_size=(2, 2, 2))])
def test_what_torch_refuses_is_not_fused_away(options):
    with pytest.raises(RuntimeError):
        BadArgument(**options)(image())
    with pytest.raises(RuntimeError):
        convert(BadArgument(**options))(image())


def test_functional_pools_leave_the_forward():
    model = Functional()
    converted = convert(model)
    assert isinstance(converted.conv1, ConvMaxPool2d) and isinstance(converted.conv2, ConvMaxPool2d)
    with torch.no_grad():
        close(converted(image()), model(image()))


class Watched(nn.Module):
    """Somebody else sees what goes into the pool."""

    def __init__(self, inplace):
        super().__init__()
        self.conv, self.relu, self.pool = nn.Conv2d(8, 6, 3), nn.ReLU(inplace), nn.MaxPool2d(2)

    def forward(self, x):
        z = self.conv(x)
        y = self.relu(z)
        return self.pool(y).sum() + (z if self.relu.inplace else y).sum()


@pytest.mark.parametrize("model", [
    stage(nn.MaxPool2d(3, 2)), stage(nn.MaxPool2d(2, 1)), stage(nn.MaxPool2d(2, padding=1)),
    stage(nn.MaxPool2d(2, ceil_mode=True)), stage(nn.MaxPool2d(2, dilation=2)), stage(nn.AvgPool2d(2)),
    stage(None, nn.BatchNorm2d(16), nn.ReLU()), Watched(False), Watched(True),
])  # fmt: skip
def test_what_is_no_such_pool_stays(model):
    model.eval()
    converted = convert(model)
    assert not any(isinstance(m, ConvMaxPool2d) for m in converted.modules())
    with torch.no_grad():
        close(converted(image()), model(image()))


def test_hooked_and_excluded_pools_stay():
    model = stage(None, nn.ReLU())
    assert type(convert(model, exclude="2")[2]) is nn.MaxPool2d
    model[2].register_forward_hook(lambda *_: None)
    assert not isinstance(convert(model, fallback="silent")[0], ConvMaxPool2d)


def test_explain_tells_which_kernels_run():
    x = torch.randn(1, 64, 56, 56)
    conv = convert(nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)))
    rows = fastconv.explain(conv, x).rows
    assert {row["problem"].count("maxpool2") for row in rows} == {1}
    assert [row["name"] for row in rows if row["chosen"]] == ["winograd"]
    refusals = [row["reason"] for row in rows if row["name"] == "direct" and row["device"] == "cpu"]
    assert refusals == ["does no max-pool after the convolution"]
    with fastconv.algorithm("direct"):
        assert fastconv.explain(conv, x).chosen == ["direct", "max_pool"]
    pointwise = convert(nn.Sequential(nn.Conv2d(64, 64, 1), nn.MaxPool2d(2)))
    assert fastconv.explain(pointwise, x).chosen[1] == "max_pool"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int32])
def test_the_function_is_convolution_and_pool(dtype):
    x, w, b = (t.to(dtype) for t in (image() * 3, torch.randn(16, 8, 3, 3) * 3, torch.randn(16)))
    y = FF.conv2d_max_pool2d(x, w, b, padding=1, activation="relu")
    expected = F.max_pool2d(F.relu(F.conv2d(x.double(), w.double(), b.double(), padding=1)), 2)
    bound = {torch.float32: 4e-6, torch.bfloat16: 8e-3, torch.float64: 1e-14, torch.int32: 0}[dtype]
    assert y.dtype == dtype and y.shape == expected.shape
    assert (y.double() - expected).abs().max() <= bound * expected.abs().max()


def test_bad_arguments_raise_torchs_errors():
    x, w = image(), torch.randn(16, 8, 3, 3)
    with pytest.raises(RuntimeError, match="expected input.* to have 8 channels"):
        FF.conv2d_max_pool2d(x[:, :4], w)
    with pytest.raises(RuntimeError, match="Output size is too small"):
        FF.conv2d_max_pool2d(x[..., :3, :3], w)
    with pytest.raises(ValueError, match="unknown activation"):
        FF.conv2d_max_pool2d(x, w, activation="nosuch")
    with pytest.raises((RuntimeError, ValueError, NotImplementedError), match="nosuch"):
        FF.conv2d_max_pool2d(x, w, algorithm="nosuch")
    assert FF.conv2d_max_pool2d(x[:0], w).shape == (0, 16, 8, 9)


def test_under_autocast_compile_and_vmap():
    x, w, b = image(), torch.randn(16, 8, 3, 3), torch.randn(16)
    with torch.no_grad():
        expected = F.max_pool2d(F.conv2d(x, w, b), 2)
        with torch.autocast("cpu", torch.bfloat16):
            assert FF.conv2d_max_pool2d(x, w, b).dtype is torch.bfloat16
        torch.testing.assert_close(torch.vmap(lambda t: FF.conv2d_max_pool2d(t, w, b))(x), expected, rtol=1e-4, atol=1e-4)
        compiled = torch.compile(lambda t: FF.conv2d_max_pool2d(t, w, b), backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-4)


def test_in_the_simulated_gpu_two_kernels_run():
    x, w = torch.randn(1, 4, 6, 6), torch.randn(4, 4, 3, 3)
    with fastconv.simulated_gpu():
        y = FF.conv2d_max_pool2d(x, w)
    torch.testing.assert_close(y, F.max_pool2d(F.conv2d(x, w), 2), rtol=1e-4, atol=1e-4)
