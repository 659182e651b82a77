"""fastconv.nn: the modules behave as their torch.nn namesakes in everything but the kernel that runs."""

import copy
import inspect
import io
import pickle
import re

import pytest
import torch

import fastconv
from fastconv import nn as fnn

CONVS = {
    "3x3 same size": dict(args=(4, 6, 3), padding=1),
    "1x1": dict(args=(4, 6, 1)),
    "no bias": dict(args=(4, 6, 3), bias=False),
    "asymmetric": dict(args=(4, 6, (3, 2)), stride=(2, 1), padding=(0, 1), dilation=(1, 2)),
    "grouped": dict(args=(4, 6, 3), groups=2),
    "depthwise": dict(args=(4, 8, 3), groups=4, padding=1),
    "same, even window": dict(args=(4, 6, (4, 2)), padding="same"),
    "valid": dict(args=(4, 6, 3), padding="valid"),
    "reflect": dict(args=(4, 6, 3), padding=(1, 2), padding_mode="reflect"),
    "replicate": dict(args=(4, 6, 5), padding=2, padding_mode="replicate", stride=2),
    "circular": dict(args=(4, 6, 3), padding=1, padding_mode="circular"),
    "same, reflect": dict(args=(4, 6, (4, 3)), padding="same", padding_mode="reflect"),
}
POOLS = {
    "2": dict(kernel_size=2),
    "3, stride 2, padding 1": dict(kernel_size=3, stride=2, padding=1),
    "ceil": dict(kernel_size=(3, 2), stride=(2, 3), padding=(1, 0), ceil_mode=True),
}
AVERAGES = {
    **POOLS,
    "padding not counted": dict(kernel_size=3, stride=2, padding=1, count_include_pad=False),
    "divisor": dict(kernel_size=3, divisor_override=5),
}
MODULES = {
    "Conv2d": lambda: fnn.Conv2d(4, 6, 3, padding=1),
    "ConvReLU2d": lambda: fnn.ConvReLU2d(4, 6, 3, padding=1),
    "MaxPool2d": lambda: fnn.MaxPool2d(3, 2, 1),
    "AvgPool2d": lambda: fnn.AvgPool2d(3, 2, 1),
}


def pair(ours, *args, **options):
    """Our module and torch's, made from the same seed."""
    theirs = getattr(torch.nn, ours.__mro__[1].__name__ if ours is fnn.ConvReLU2d else ours.__name__)
    torch.manual_seed(3)
    a = ours(*args, **options)
    torch.manual_seed(3)
    return a, theirs(*args, **options)


def image(*shape, dtype=torch.float32, seed=5):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def assert_as_good(ours, theirs, exact):
    """Error against float64 at most twice torch's own, plus four roundings of the largest value."""
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    assert not ours.isnan().any()
    floor = 4 * torch.finfo(ours.dtype).eps * exact.abs().max().item()
    error, allowed = ((t.double() - exact).abs().max().item() for t in (ours, theirs))
    assert error <= 2 * allowed + floor, f"error {error:.3g}, torch's {allowed:.3g}, floor {floor:.3g}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", CONVS)
def test_conv2d_is_torchs(name, dtype):
    options = dict(CONVS[name])
    args = options.pop("args")
    ours, theirs = pair(fnn.Conv2d, *args, **options, dtype=dtype)
    assert torch.equal(ours.weight, theirs.weight), "the same seed initializes the same weights"
    x, y = (image(2, 4, 11, 7, dtype=dtype).requires_grad_() for _ in range(2))
    z = x.detach().double().requires_grad_()
    exact = copy.deepcopy(theirs).double()
    results = [m(t) for m, t in ((ours, x), (theirs, y), (exact, z))]
    assert_as_good(*(r.detach() for r in results))
    assert results[0].stride() == results[1].stride()
    grad = image(*results[0].shape, dtype=dtype, seed=6)
    for result in results:
        result.backward(grad.to(result.dtype))
    assert_as_good(x.grad, y.grad, z.grad)
    for p, q, r in zip(ours.parameters(), theirs.parameters(), exact.parameters(), strict=True):
        assert_as_good(p.grad, q.grad, r.grad)


@pytest.mark.parametrize("name", CONVS)
def test_conv_relu2d_is_conv_then_relu(name):
    options = dict(CONVS[name])
    args = options.pop("args")
    ours, theirs = pair(fnn.ConvReLU2d, *args, **options)
    exact = copy.deepcopy(theirs).double()
    x = image(2, 4, 11, 7)
    results = [ours(x), theirs(x).relu(), exact(x.double()).relu()]
    assert_as_good(*(r.detach() for r in results))
    for result in results:
        result.sum().backward()
    for p, q, r in zip(ours.parameters(), theirs.parameters(), exact.parameters(), strict=True):
        assert_as_good(p.grad, q.grad, r.grad)


def test_conv_relu2d_passes_nan():
    conv = fnn.ConvReLU2d(1, 1, 1)
    x = torch.tensor([[[[float("nan"), -1.0]]]])
    assert (
        conv(x).isnan().tolist() == torch.relu(torch.nn.functional.conv2d(x, conv.weight, conv.bias)).isnan().tolist()
    )


@pytest.mark.parametrize("ours, name", [(fnn.MaxPool2d, n) for n in POOLS] + [(fnn.AvgPool2d, n) for n in AVERAGES])
def test_pools_are_torchs(ours, name):
    options = AVERAGES[name]
    ours, theirs = pair(ours, **options)
    x, y = (image(2, 3, 11, 8).requires_grad_() for _ in range(2))
    a, b = ours(x), theirs(y)
    assert a.shape == b.shape
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    grad = image(*a.shape, seed=6)
    a.backward(grad)
    b.backward(grad)
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-6, atol=1e-6)


def test_max_pool2d_dilation_and_indices():
    ours, theirs = pair(fnn.MaxPool2d, (2, 3), stride=2, padding=1, dilation=(2, 1), return_indices=True)
    x = image(2, 3, 11, 8)
    for a, b in zip(ours(x), theirs(x), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_unbatched_batch_0_and_channels_last(make):
    module = make()
    x = image(2, 4, 8, 9)
    batched = module(x)
    torch.testing.assert_close(module(x[1]), batched[1])
    assert module(x[:0]).shape == (0, *batched.shape[1:])
    last = module(x.to(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, batched)


def test_channels_last_weight_makes_a_channels_last_output():
    conv = fnn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
    assert conv(image(2, 4, 8, 9)).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("ours", [fnn.Conv2d, fnn.ConvReLU2d, fnn.MaxPool2d, fnn.AvgPool2d])
def test_is_a_torch_module_with_its_signature(ours):
    theirs = getattr(torch.nn, "Conv2d" if ours is fnn.ConvReLU2d else ours.__name__)
    assert issubclass(ours, theirs)
    mine, torchs = (list(inspect.signature(c.__init__).parameters.values()) for c in (ours, theirs))
    shared = mine[:-1] if theirs is torch.nn.Conv2d else mine
    assert [(p.name, p.default, p.kind) for p in shared] == [(p.name, p.default, p.kind) for p in torchs]
    args = (4, 6, 3) if theirs is torch.nn.Conv2d else (3, 2)
    assert repr(ours(*args)).removeprefix(ours.__name__) == repr(theirs(*args)).removeprefix(theirs.__name__)


def test_repr_names_a_forced_algorithm_only():
    assert (
        repr(fnn.Conv2d(1, 2, 3, algorithm="direct"))
        == "Conv2d(1, 2, kernel_size=(3, 3), stride=(1, 1), algorithm='direct')"
    )


def test_state_dict_fits_both_ways():
    ours, theirs = fnn.ConvReLU2d(4, 6, 3), torch.nn.Conv2d(4, 6, 3)
    assert list(ours.state_dict()) == list(theirs.state_dict()) == ["weight", "bias"]
    ours.load_state_dict(theirs.state_dict())
    assert torch.equal(ours.weight, theirs.weight)
    theirs.load_state_dict(fnn.Conv2d(4, 6, 3).state_dict())


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_copies_keep_everything(make):
    module = make().eval()
    x = image(2, 4, 8, 9)
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), loaded):
        assert type(other) is type(module) and repr(other) == repr(module) and not other.training
        assert torch.equal(other(x), module(x))


def test_a_copy_keeps_the_algorithm():
    assert pickle.loads(pickle.dumps(fnn.Conv2d(1, 1, 1, algorithm="direct"))).algorithm == "direct"


def test_the_algorithm_is_forced_and_checked():
    conv = fnn.Conv2d(4, 6, 3, algorithm="direct")
    x = image(2, 4, 8, 9)
    with fastconv.algorithm("direct"):
        expected = fnn.Conv2d.forward(conv, x)
    assert torch.equal(conv(x), expected)
    with pytest.raises(TypeError, match="algorithm must be a str, but got int"):
        fnn.Conv2d(4, 6, 3, algorithm=3)
    with pytest.raises((ValueError, NotImplementedError), match="'fourier'.*direct"):
        fnn.Conv2d(4, 6, 3, algorithm="fourier")(x)


@pytest.mark.parametrize(
    "options",
    [
        dict(in_channels=3, out_channels=4, kernel_size=3, groups=2),
        dict(in_channels=4, out_channels=3, kernel_size=3, groups=2),
        dict(in_channels=4, out_channels=4, kernel_size=3, groups=0),
        dict(in_channels=4, out_channels=4, kernel_size=3, padding="full"),
        dict(in_channels=4, out_channels=4, kernel_size=3, padding="same", stride=2),
        dict(in_channels=4, out_channels=4, kernel_size=3, padding_mode="mirror"),
        dict(in_channels=-4, out_channels=4, kernel_size=3),
        dict(in_channels=4, out_channels=4),
    ],
    ids=str,
)
def test_constructor_errors_are_torchs(options):
    with pytest.raises(Exception) as theirs:
        torch.nn.Conv2d(**options)
    with pytest.raises(theirs.type, match=re.escape(str(theirs.value))):
        fnn.Conv2d(**options)


@pytest.mark.parametrize("x", [torch.ones(2, 5, 8, 8), torch.ones(8, 8), torch.ones(2, 4, 2, 2), None, 3], ids=str)
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_forward_errors_are_torchs(x, mode):
    ours, theirs = pair(fnn.Conv2d, 4, 6, 5, padding_mode=mode)
    with pytest.raises(Exception) as expected:
        theirs(x)
    # Beyond " - got " torch lists the arguments of its own call, some by keyword.
    with pytest.raises(expected.type, match=re.escape(str(expected.value).split(" - got ")[0])):
        ours(x)


def test_device_and_dtype_arguments():
    conv = fnn.Conv2d(4, 6, 3, device="meta", dtype=torch.bfloat16)
    assert conv.weight.is_meta and conv.weight.dtype is torch.bfloat16
    assert conv(torch.empty(2, 4, 8, 9, device="meta", dtype=torch.bfloat16)).shape == (2, 6, 6, 7)


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_compiles_in_one_graph(make):
    module = make()
    x = image(2, 4, 8, 9)
    torch.testing.assert_close(torch.compile(module, fullgraph=True, backend="aot_eager")(x), module(x))
