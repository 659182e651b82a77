"""Accuracy classes: what each allows, and that the choice reaches the kernels, backward and compiled graphs."""

import pytest
import torch
import torch.nn.functional as F

import fastconv
import fastconv.functional as FF

BOUNDS = {"fast": 2e-6, "fastest": 1.2e-5}  # of the largest output, as fastconv/accuracy.py states


@pytest.fixture(autouse=True)
def default_class():
    assert fastconv.get_accuracy() == "fast"
    yield
    fastconv.set_accuracy("fast")


def operands(scale=1.0):
    g = torch.Generator().manual_seed(3)
    x = torch.randn(1, 64, 31, 29, generator=g) * scale
    weight = torch.randn(64, 64, 3, 3, generator=g) / 24
    return x, weight


def relative(result, reference):
    return ((result.double() - reference).abs().max() / reference.abs().max()).item()


@pytest.mark.parametrize("name", ["fast", "fastest"])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_error_within_the_class(name, scale):
    fastconv.set_accuracy(name)
    x, weight = operands(scale)
    reference = F.conv2d(x.double(), weight.double(), padding=1)
    assert relative(FF.conv2d(x, weight, padding=1, algorithm="winograd"), reference) <= BOUNDS[name]


def test_class_torch_is_as_exact_as_torch():
    fastconv.set_accuracy("torch")
    x, weight = operands()
    reference = F.conv2d(x.double(), weight.double(), padding=1)
    torch_error = relative(F.conv2d(x, weight, padding=1), reference)
    for algorithm in ("auto", "direct", "im2col", "winograd"):
        ours = relative(FF.conv2d(x, weight, padding=1, algorithm=algorithm), reference)
        assert ours <= 2 * torch_error + 2**-23, algorithm


def test_the_choice_is_kept_for_backward():
    x, weight = operands()
    x.requires_grad_(), weight.requires_grad_()
    fastconv.set_accuracy("fastest")
    y = FF.conv2d(x, weight, padding=1)
    fastconv.set_accuracy("torch")
    dx, dw = torch.autograd.grad(y, (x, weight), torch.ones_like(y))
    xd, wd = x.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    gx, gw = torch.autograd.grad(F.conv2d(xd, wd, padding=1), (xd, wd), torch.ones(y.shape, dtype=torch.double))
    assert relative(dx, gx) <= BOUNDS["fastest"]
    assert relative(dw, gw) <= BOUNDS["fastest"]


def test_explain_and_compile_see_the_class():
    fastconv.set_accuracy("fastest")
    x, weight = operands()
    assert "acc:fastest" in str(fastconv.explain(fastconv.nn.Conv2d(64, 64, 3, padding=1), x).rows[0]["problem"])
    compiled = torch.compile(lambda x, w: FF.conv2d(x, w, padding=1), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, weight), FF.conv2d(x, weight, padding=1), rtol=0, atol=0)


def test_an_unknown_class_is_refused():
    with pytest.raises(ValueError, match="torch, fast, fastest"):
        fastconv.set_accuracy("fastestest")
