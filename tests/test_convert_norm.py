"""BatchNorm folded by convert: it trains as before, and every change of a weight between two eval calls is seen."""

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


def test_no_filter_is_made_where_nobody_wants_a_derivative(monkeypatch):
    from fastconv import _fold

    count = []
    fold = _fold.folded
    monkeypatch.setattr(_fold, "folded", lambda *args: count.append(1) or fold(*args))
    original = randomized(nn.Sequential(nn.Conv2d(3, 64, 5), nn.BatchNorm2d(64), nn.ReLU())).eval()
    model, x = convert(original), image()
    with torch.inference_mode():
        torch.testing.assert_close(model(x), original(x))
    assert not count
    for parameters_want, input_wants in ((True, False), (False, True)):
        for m in (model, original):
            m.requires_grad_(parameters_want)
        ours, theirs = (x.clone().requires_grad_(input_wants) for _ in range(2))
        model(ours).sum().backward()
        original(theirs).sum().backward()
        if input_wants:
            torch.testing.assert_close(ours.grad, theirs.grad)
    assert len(count) == 2


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_operator_is_convolution_and_batch_norm(dtype, bias, affine):
    def values(*sizes, seed):
        return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed)).to(dtype)

    for groups in (1, 8):  # a depthwise convolution too
        x, weight = values(2, 8, 9, 7, seed=1), values(16, 8 // groups, 3, 3, seed=2)
        b = values(16, seed=3) if bias else None
        mean, var = values(16, seed=4), values(16, seed=5).abs() + 0.5
        gamma, beta = (values(16, seed=6), values(16, seed=7)) if affine else (None, None)
        residual = values(2, 16, 9, 7, seed=8)
        y = torch.ops.fastconv.conv2d_batch_norm(
            x, weight, b, residual, mean, var, gamma, beta, 1e-3, [1, 1], [1] * 4, [1, 1], groups, "relu", "auto", "torch"
        )
        wide = [None if t is None else t.double() for t in (x, weight, b, mean, var, gamma, beta, residual)]
        x, weight, b, mean, var, gamma, beta, residual = wide
        expected = F.conv2d(x, weight, b, padding=1, groups=groups)
        expected = F.relu(F.batch_norm(expected, mean, var, gamma, beta, eps=1e-3) + residual)
        eps = torch.finfo(dtype).eps
        assert (y.double() - expected).abs().max() <= 8 * eps * expected.abs().max()


def test_a_batch_of_batch_norms_is_one_call():
    x, weight = torch.randn(3, 2, 4, 6, 5), torch.randn(8, 4, 3, 3)
    residual, statistics = torch.randn(3, 2, 8, 4, 3), torch.rand(4, 3, 8) + 0.5

    def call(x, residual, mean, var, gamma, beta, weight=weight):
        return torch.ops.fastconv.conv2d_batch_norm(
            x, weight, None, residual, mean, var, gamma, beta, 1e-5, [1, 1], [0] * 4, [1, 1], 1, "none", "auto", "torch"
        )

    apart = torch.stack([call(x[i], residual[i], *statistics[:, i]) for i in range(3)])
    torch.testing.assert_close(torch.vmap(call)(x, residual, *statistics), apart)
    shared = statistics[:, 0]
    apart = torch.stack([call(x[i], residual[i], *shared) for i in range(3)])
    torch.testing.assert_close(torch.vmap(lambda x, r: call(x, r, *shared))(x, residual), apart)
    weights = torch.stack([weight, weight + 1, weight * 2])
    apart = torch.stack([call(x[0], residual[0], *shared, weight=w) for w in weights])
    torch.testing.assert_close(torch.vmap(lambda w: call(x[0], residual[0], *shared, weight=w))(weights), apart)


def test_the_operator_has_no_derivative_and_says_so():
    x, weight = torch.randn(1, 2, 4, 4, requires_grad=True), torch.randn(3, 2, 3, 3)
    y = torch.ops.fastconv.conv2d_batch_norm(
        x, weight, None, None, torch.zeros(3), torch.ones(3), None, None, 1e-5, [1, 1], [0] * 4, [1, 1], 1, "none",
        "auto", "torch",
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="for inference"):
        y.sum().backward()


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
