"""convert: the activations that a convolution before them takes over, as modules and as functions."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from convert_models import (
    assert_same,
    image,
    one_thread,  # noqa: F401 (a fixture)
    randomized,
)
from fastconv import conversion_report, convert, unconvert
from fastconv import nn as fnn
from fastconv._fold import ConvActivation2d, ConvBatchNorm2d, FusedActivation

pytestmark = pytest.mark.filterwarnings("error:fastconv")

MODULES = {
    "relu": nn.ReLU(),
    "leaky_relu:0.01": nn.LeakyReLU(inplace=True),
    "leaky_relu:0.2": nn.LeakyReLU(0.2),
    "relu6": nn.ReLU6(True),
    "elu:1.0": nn.ELU(),
    "elu:0.5": nn.ELU(0.5, inplace=True),
    "sigmoid": nn.Sigmoid(),
    "tanh": nn.Tanh(),
    "silu": nn.SiLU(),
    "gelu": nn.GELU(),
    "hardswish": nn.Hardswish(),
}
class Functional(nn.Module):
    """One convolution before each way to call an activation; the last four are ways that no kernel computes."""

    words = [
        "leaky_relu:0.01", "leaky_relu:0.2", "leaky_relu:0.3", "relu6", "elu:0.5", "sigmoid", "tanh", "silu", "gelu",
        "hardswish", None, None, None, None,
    ]  # fmt: skip

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        for i in range(len(self.words)):
            setattr(self, f"conv{i}", nn.Conv2d(3, 3, 3, padding=1))

    def forward(self, x):
        x = F.leaky_relu(self.conv0(x))
        x = F.leaky_relu(self.conv1(x), 0.2, True)
        x = F.leaky_relu_(self.conv2(x), negative_slope=0.3)
        x = F.relu6(self.conv3(x), inplace=True)
        x = F.elu(self.conv4(x), alpha=0.5)
        x = torch.sigmoid(self.conv5(x))
        x = self.conv6(x).tanh_()
        x = F.silu(input=self.conv7(x))
        x = F.gelu(self.conv8(x), approximate="none")
        x = F.hardswish(self.conv9(x))
        x = F.gelu(self.conv10(x), approximate="tanh")
        x = F.leaky_relu(self.conv11(x), -0.1)
        x = F.elu(self.conv12(x), -1.0)
        return F.softplus(self.conv13(x)).mean((2, 3))


def word(conv):
    return conv._fastconv_norm[0]._fastconv_activation if isinstance(conv, ConvBatchNorm2d) else conv._activation


@pytest.mark.parametrize("norm", [False, True], ids=["conv", "norm"])
@pytest.mark.parametrize("name", MODULES)
def test_modules(name, norm):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), *([nn.BatchNorm2d(4)] * norm), copy.deepcopy(MODULES[name])]
    original = randomized(nn.Sequential(*layers, nn.Flatten(), nn.Linear(400, 3)))
    model = convert(original)
    assert word(model[0]) == name and isinstance(model[1 + norm], FusedActivation)
    if not norm:
        assert type(model[0]) is (fnn.ConvReLU2d if name == "relu" else ConvActivation2d)
    label = type(MODULES[name]).__name__
    assert f"{label}, done by 0" in repr(model) and label in conversion_report(model)
    assert_same(model, original)
    copied = pickle.loads(pickle.dumps(model))
    assert repr(copied) == repr(model) and torch.equal(copied(image()), model(image()))
    back = unconvert(model)
    assert repr(back) == repr(original)
    for a, b in zip(back.modules(), original.modules(), strict=True):
        assert type(a) is type(b) and a.__dict__.keys() == b.__dict__.keys()


def test_functions():
    original = Functional()
    model = convert(original)
    assert [word(getattr(model, f"conv{i}")) for i in range(14)] == Functional.words
    assert_same(model, original)
    assert type(unconvert(model)) is Functional


def test_modules_that_no_kernel_does_stay():
    for other in (nn.LeakyReLU(-0.1), nn.ELU(-1.0), nn.GELU("tanh"), nn.Softplus()):
        model = convert(nn.Sequential(nn.Conv2d(3, 4, 3), other))
        assert type(model[0]) is fnn.Conv2d and type(model[1]) is type(other)


def test_two_activations_after_one_convolution():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            return torch.tanh(self.conv(F.relu(self.conv(x)))).mean((2, 3))

    original = Two()
    model = convert(original)
    assert type(model.conv) is fnn.Conv2d and "ReLU and Tanh not fused" in conversion_report(model)
    assert_same(model, original)


def test_compiles_in_one_graph():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.Hardswish(), nn.Conv2d(3, 4, 3), nn.ELU(0.5)]
    model = convert(randomized(nn.Sequential(*layers))).eval()
    x = image()
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), model(x))
    torch._dynamo.reset()
