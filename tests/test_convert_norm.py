"""BatchNorm folded by convert: it trains as before, and every change of a weight between two eval calls is seen."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from convert_models import (
    assert_same,
    image,
    make,
    one_thread,  # noqa: F401 (a fixture)
    randomized,
)
from fastconv import conversion_report, convert
from fastconv import nn as fnn
from fastconv._fold import ConvBatchNorm2d

pytestmark = pytest.mark.filterwarnings("error:fastconv")  # no warning where none is due


def test_batch_norm_keeps_its_place_and_trains():
    original, model = make("vgg_bn"), convert(make("vgg_bn"))
    assert isinstance(model[0][1], nn.BatchNorm2d) and isinstance(model[0][2], nn.Identity)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (original, model)]
    for step in range(3):
        for m, optimizer in zip((original, model), optimizers, strict=True):
            m.train()
            optimizer.zero_grad()
            F.cross_entropy(m(image(seed=step)), torch.tensor([1, 2])).backward()
            optimizer.step()
        for a, b in zip(model.state_dict().values(), original.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        x = image(seed=99)
        torch.testing.assert_close(model.eval()(x), original.eval()(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("conv_trains", [True, False])
@pytest.mark.parametrize("norm_trains", [True, False])
def test_the_batch_norms_own_mode_decides(conv_trains, norm_trains):
    original = randomized(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    model = convert(original)
    for m in (original, model):
        m[0].train(conv_trains)
        m[1].train(norm_trains)
    x = image()
    torch.testing.assert_close(model(x), original(x))
    torch.testing.assert_close(model[1].running_var, original[1].running_var)


CHANGES = {
    "data": lambda m: m[0].weight.data.mul_(2),
    "data rebound": lambda m: setattr(m[0].weight, "data", m[0].weight.data * 2),
    "numpy": lambda m: m[0].weight.detach().numpy().__imul__(2),
    "bias, numpy": lambda m: m[0].bias.detach().numpy().__iadd__(2),
    "gamma": lambda m: m[1].weight.data.mul_(2),
    "beta": lambda m: m[1].bias.data.add_(2),
    "running mean": lambda m: m[1].running_mean.numpy().__iadd__(2),
    "running var": lambda m: m[1].running_var.numpy().__imul__(4),
    "eps": lambda m: setattr(m[1], "eps", 1.0),
    "parameter replaced": lambda m: setattr(m[0], "weight", nn.Parameter(m[0].weight.detach() * 2)),
    "state_dict": lambda m: m.load_state_dict({k: 2 * v for k, v in m.state_dict().items()}),
    "optimizer": lambda m: _step(m, torch.optim.Adam(m.parameters(), lr=0.1)),
    "fused optimizer": lambda m: _step(m, torch.optim.Adam(m.parameters(), lr=0.1, fused=True)),
    "no statistics": lambda m: (setattr(m[1], "running_mean", None), setattr(m[1], "running_var", None)),
    "dtype": lambda m: m.double().float(),
}


def _step(model, optimizer):
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("width", [4, 64], ids=["small", "kept"])
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_changes_between_eval_calls_are_seen(change, grad, width):
    original = randomized(nn.Sequential(nn.Conv2d(3, width, 5), nn.BatchNorm2d(width), nn.ReLU())).eval()
    model = convert(original)
    x = image()
    with torch.set_grad_enabled(grad):
        for _ in range(3):  # the kernels keep what they derive from a filter from its second sight on
            torch.testing.assert_close(model(x), original(x))
        for m in (original, model):
            change(m)
        torch.testing.assert_close(model(x), original(x))


def test_a_filter_is_folded_once_while_nothing_changes(monkeypatch):
    from fastconv import _fold

    count = []
    fold = _fold.folded
    monkeypatch.setattr(_fold, "folded", lambda *args: count.append(1) or fold(*args))
    original = randomized(nn.Sequential(nn.Conv2d(3, 64, 5), nn.BatchNorm2d(64))).eval()
    model, x = convert(original), image()
    with torch.inference_mode():
        assert torch.equal(model(x), model(x))
    assert len(count) == 1
    with torch.no_grad():
        twin = copy.deepcopy(model)
        twin[1].weight.mul_(2)
        torch.testing.assert_close(model(x), original(x))
        assert len(count) == 1
        torch.testing.assert_close(twin(x), original(x) * 2 - original[1].bias[:, None, None])
    model.requires_grad_(False)
    x.requires_grad_()
    model(x).sum().backward()  # the kept filter was made in inference mode, and is saved for backward here
    y = x.detach().clone().requires_grad_()
    original(y).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    assert len(count) == 2
    model.train()(x)
    assert model[0] not in _fold._kept


def test_folded_eval_mode_is_differentiable_twice():
    conv = nn.Conv2d(2, 3, 2)
    model = convert(randomized(nn.Sequential(conv, nn.BatchNorm2d(3)))).double().eval()
    x = torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    parameters = dict(model.named_parameters())

    def function(x, *values):
        return torch.func.functional_call(model, dict(zip(parameters, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(function, (x, *parameters.values()))
    assert torch.autograd.gradgradcheck(function, (x, *parameters.values()))


def test_batch_norm_that_cannot_be_folded():
    batch_statistics = nn.BatchNorm2d(4, track_running_stats=False)
    hooked = nn.BatchNorm2d(4)
    hooked.register_forward_hook(lambda *args: None)
    for norm, reason in (
        (batch_statistics, "keeps no running statistics"),
        (hooked, "has hooks"),
        (nn.InstanceNorm2d(4), None),
    ):
        original = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU())
        model = convert(original)
        assert type(model[0]) is fnn.Conv2d and type(model[2]) is nn.ReLU
        assert reason is None or reason in conversion_report(model)
        assert_same(model, original)


def test_one_batch_norm_after_two_convolutions_is_not_folded():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.norm = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x):
            return (self.norm(self.a(x)) + self.norm(self.b(x))).mean((2, 3))

    original = randomized(Heads())
    model = convert(original)
    assert type(model.a) is type(model.b) is fnn.Conv2d and type(model.norm) is nn.BatchNorm2d
    assert_same(model, original)


def test_affine_false_and_errors_of_a_folded_pair():
    original = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False))
    original[1].running_mean.normal_()
    model = convert(original)
    assert isinstance(model[0], ConvBatchNorm2d)
    assert_same(model, original)
    with pytest.raises(ValueError, match="expected 4D input"):
        model.eval()(image()[0])
