"""Class "fast", Winograd F(4x4, 3x3), as the default: what a user of PyTorch would notice if it were not exact enough.

It is forced here, so that no smaller problem is computed in a more exact way.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from examples import train_lenet_digits as example
from torch import nn

import fastconv
import fastconv.functional as FF


def winograd(x, weight, bias=None):
    return FF.conv2d(x, weight, bias, padding=weight.shape[2] // 2, algorithm="winograd")


def with_gradients(function, x, weight, dy):
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    y = function(x, weight)
    return {"y": y, **dict(zip(("dx", "dw"), torch.autograd.grad(y, (x, weight), dy)))}


def conv(x, weight):
    return F.conv2d(x, weight, padding=weight.shape[2] // 2)


def relative_error(result, reference):
    return ((result.double() - reference).abs().max() / reference.abs().max()).item()


def test_the_default_class_admits_f4():
    assert fastconv.get_accuracy() == "fast"
    layer = fastconv.nn.Conv2d(128, 128, 3, padding=1)
    (row,) = [row for row in fastconv.explain(layer, torch.randn(1, 128, 56, 56)).rows if row["chosen"]]
    assert row["name"] == "winograd" and row["reason"].startswith("F(4x4,3x3)")


@pytest.mark.parametrize("channels", [3, 64, 256])
def test_outputs_and_gradients_within_torch_testings_tolerances(channels):
    """Brought to a deviation of one, as PyTorch's own tests have it: torch.testing allows 1e-5 + 1.3e-6 |y| in float32."""
    g = torch.Generator().manual_seed(channels)
    x, dy = torch.randn(2, channels, 14, 15, generator=g), torch.randn(2, 32, 14, 15, generator=g)
    weight = torch.randn(32, channels, 3, 3, generator=g) / (9 * channels) ** 0.5
    expected = with_gradients(conv, x.double(), weight.double(), dy.double())
    found = with_gradients(winograd, x, weight, dy)
    for name, reference in expected.items():
        scale = reference.std()
        torch.testing.assert_close((found[name] / scale).float(), (reference / scale).float())


# How often PyTorch's own error is allowed. Measured: 5 times for outputs and grad_input, below 1 for grad_weight; 9 times
# where single values dwarf their neighbours, which share their tile's rounding.
SPREADS = {
    "magnitude 1e6": (6, lambda size, g: torch.randn(size, generator=g) * 1e6),
    "magnitude 1e-20": (6, lambda size, g: torch.randn(size, generator=g) * 1e-20),
    "offset 1000": (6, lambda size, g: 1000 + torch.randn(size, generator=g)),
    "after a relu": (6, lambda size, g: torch.randn(size, generator=g).relu()),
    "log-normal over six decades": (12, lambda size, g: torch.exp(3 * torch.randn(size, generator=g))),
}


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("zero_mean", [False, True], ids=["any filter", "filters of mean 0"])
def test_inputs_and_gradients_of_any_magnitude(spread, zero_mean):
    times, values = SPREADS[spread]
    g = torch.Generator().manual_seed(1)
    x, dy = values((2, 96, 28, 28), g), values((2, 64, 28, 28), g)
    weight = torch.randn(64, 96, 3, 3, generator=g) / 29
    if zero_mean:  # where the sums of an offset cancel
        weight -= weight.mean((2, 3), keepdim=True)
    expected = with_gradients(conv, x.double(), weight.double(), dy.double())
    theirs, ours = with_gradients(conv, x, weight, dy), with_gradients(winograd, x, weight, dy)
    for name in ("y", "dx", "dw"):
        assert relative_error(ours[name], expected[name]) <= times * relative_error(theirs[name], expected[name]) + 2**-23


def test_bfloat16_rounds_as_torch_does():
    g = torch.Generator().manual_seed(2)
    x, weight, dy = (
        torch.randn(size, generator=g).bfloat16() for size in ((2, 64, 20, 21), (48, 64, 3, 3), (2, 48, 20, 21))
    )
    expected = with_gradients(conv, x.double(), weight.double(), dy.double())
    theirs, ours = with_gradients(conv, x, weight, dy), with_gradients(winograd, x, weight, dy)
    for name in ("y", "dx", "dw"):
        assert relative_error(ours[name], expected[name]) <= 1.1 * relative_error(theirs[name], expected[name])


def lenet_of_3x3():
    """LeNet-5 with pairs of 3x3 layers in the place of its 5x5 ones: each runs F(4x4, 3x3), the first one too."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.Tanh(), nn.Conv2d(6, 6, 3), nn.Tanh(), nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 3), nn.Tanh(), nn.Conv2d(16, 16, 3), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(400, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, 10),
    )  # fmt: skip


# tanh: with ReLUs a rounding may switch a unit at its kink, and training amplifies it, between two runs of torch as well.
def test_training_follows_torchs_loss_curve():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        torch.manual_seed(0)
        theirs = lenet_of_3x3()
        ours = fastconv.convert(copy.deepcopy(theirs), fallback="error")
        data = example.digits()
        reference = example.train(theirs, data, 7, 0, example.RATES["tanh"])
        with fastconv.algorithm("winograd"):
            curve = example.train(ours, data, 7, 0, example.RATES["tanh"])
    finally:
        torch.set_num_threads(before)
    assert reference.losses[-1] < 0.5 * reference.losses[0]
    assert max(abs(a - b) for a, b in zip(curve.losses, reference.losses, strict=True)) < 1e-5
    assert abs(curve.accuracy - reference.accuracy) <= 1 / 359  # of 359 held-out digits, one
