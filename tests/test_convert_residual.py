"""convert: a residual and the activation after it, done by the convolution before them."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from convert_models import (
    BasicBlock,
    assert_same,
    image,
    make,
    one_thread,  # noqa: F401 (a fixture)
    randomized,
)
from fastconv import conversion_report, convert, unconvert
from fastconv import nn as fnn
from fastconv._residual import ConvResidual2d

pytestmark = pytest.mark.filterwarnings("error:fastconv")


class Convolutions(TorchDispatchMode):
    """(activation, whether there is a residual) of every convolution that runs."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        activation = {"fastconv::conv2d": 8, "fastconv::conv2d_batch_norm": 13}.get(func.name())
        if activation:
            self.seen.append((args[activation], args[3] is not None))
        return func(*args, **(kwargs or {}))


def seen(model, x):
    with torch.no_grad(), Convolutions() as convolutions:
        model(x)
    return convolutions.seen


def head(block):
    """A network of one block, so that all of its input's history is a convolution of another forward."""
    torch.manual_seed(2)
    return randomized(nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), block, nn.AdaptiveAvgPool2d(1), nn.Flatten()))


class Bottleneck(nn.Module):
    """torchvision's, with its downsampling after the third convolution."""

    def __init__(self, downsample=True):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(6, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, 2 if downsample else 1, 1, bias=False), nn.BatchNorm2d(4)
        self.conv3, self.bn3 = nn.Conv2d(4, 6, 1, bias=False), nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = nn.Sequential(nn.Conv2d(6, 6, 1, 2, bias=False), nn.BatchNorm2d(6)) if downsample else None

    def forward(self, x):
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        out = self.relu(out)
        return out


class Plain(nn.Module):
    """No BatchNorm, the residual first in the sum, another activation."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x):
        return F.leaky_relu(torch.add(x, self.b(F.silu(self.a(x)))), 0.1)


class BothTerms(Plain):
    """Both terms of the sum are convolutions of this forward."""

    def forward(self, x):
        return torch.relu(self.a(x) + self.b(x))


class BothTermsNormed(BothTerms):
    def __init__(self):
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(6), nn.BatchNorm2d(6)

    def forward(self, x):
        y = self.bn1(self.a(x))
        return torch.relu(self.bn2(self.b(x)) + y)


class Twice(Plain):
    """One convolution is both terms."""

    def forward(self, x):
        return torch.relu(self.a(x) + self.a(x.flip(3)))


class Broadcast(Plain):
    """What is added is no tensor of the output's size."""

    def __init__(self):
        super().__init__()
        self.offset = nn.Parameter(torch.linspace(-1, 1, 6).view(6, 1, 1))

    def forward(self, x):
        return torch.relu(self.b(x) + self.offset)


class Wider(Plain):
    """The sum is larger than the convolution's output."""

    def forward(self, x):
        return torch.relu(self.b(x[:1]) + x)


class Between(Plain):
    """What runs before the sum changes the convolution's input in place."""

    def forward(self, x):
        y = self.a(x)
        z = self.b(y)
        return torch.relu(z + y.mul_(2))


class InputChanged(Plain):
    """The same, by a module that is given the block's own input."""

    def __init__(self):
        super().__init__()
        self.act = nn.Softplus()
        self.inplace = nn.Threshold(0.1, 20, inplace=True)

    def forward(self, x):
        x = self.act(x)
        z = self.b(x)
        return torch.relu(z + self.inplace(x))


class Intoto(Plain):
    """The sum is written into the residual, which is used again."""

    def forward(self, x):
        y = self.a(x)
        z = self.b(x)
        y += z
        return torch.relu(y) + y


@pytest.mark.parametrize("downsample", [False, True])
def test_bottleneck(downsample):
    original = head(Bottleneck(downsample))
    model = convert(original)
    assert_same(model, original)
    shortcut = [("none", False)] * downsample
    assert seen(model.eval(), image()) == [("none", False), ("relu", False), ("relu", False), *shortcut, ("relu", True)]
    assert all(kind == ("none", False) for kind in seen(copy.deepcopy(model).train(), image()))
    assert "folds '1.bn3', the residual and ReLU in eval mode" in conversion_report(model)
    copied = pickle.loads(pickle.dumps(model)).eval()
    torch.testing.assert_close(copied(image()), model.eval()(image()))
    assert repr(copied) == repr(model)
    back = unconvert(model)
    assert repr(back) == repr(original.eval()) and type(back[1]) is Bottleneck
    torch.testing.assert_close(back(image()), original(image()))


@pytest.mark.parametrize("name", ["resnet", "resnet, functional", "resnet, two relus"])
def test_basic_blocks(name):
    model = convert(make(name)).eval()
    assert seen(model, image()).count(("relu", True)) == 2
    assert isinstance(model.layers[0], BasicBlock)


def test_without_batch_norm():
    original = head(Plain())
    model = convert(original)
    assert isinstance(model[1].b, ConvResidual2d)
    assert_same(model, original)
    assert seen(model, image())[-1] == ("leaky_relu:0.1", True)
    assert repr(unconvert(model)) == repr(original)


@pytest.mark.parametrize("block", [Broadcast, Wider])
def test_a_residual_of_another_size(block):
    original = head(block())
    model = convert(original)
    assert isinstance(model[1].b, ConvResidual2d) and seen(model, image())[-1] == ("none", False)
    assert_same(model, original)


@pytest.mark.parametrize("block", [Between, InputChanged, Intoto])
def test_what_must_stay_in_order_stays(block):
    original = head(block())
    model = convert(original)
    assert type(model[1].b) is fnn.Conv2d
    with torch.no_grad():
        torch.testing.assert_close(model(image()), original(image()))


def test_autocast_and_one_graph():
    original = head(Bottleneck()).eval()
    model, x = convert(original), image()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = model(x), original(x)
    assert ours.dtype is theirs.dtype
    torch.testing.assert_close(ours, theirs, rtol=5e-2, atol=5e-2)
    for mode in (False, True):
        expected = copy.deepcopy(model).train(mode)(x)
        compiled = torch.compile(model.train(mode), fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), expected)
    torch._dynamo.reset()


@pytest.mark.parametrize("block", [BothTerms, BothTermsNormed])
def test_of_two_convolutions_in_a_sum_the_last_one_does_it(block):
    model = head(block()).eval()
    converted = convert(copy.deepcopy(model))
    assert [residual for _, residual in seen(converted, image())] == [False, False, True]
    assert "residual not fused: '1.b' does the sum after it" in str(conversion_report(converted))
    assert_same(converted, model)


def test_a_convolution_that_is_both_terms_keeps_the_sum():
    model = head(Twice()).eval()
    converted = convert(copy.deepcopy(model))
    assert_same(converted, model)
    assert "it is both terms of a sum" in str(conversion_report(converted))
