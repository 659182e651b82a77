"""LeNet-5 learns real digits with fastconv's layers exactly as it does with torch's: item by item the same losses."""

import copy

import fastconv
import pytest
import torch
from examples import train_lenet_digits as example
from fastconv import nn as fnn


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # LeNet's layers are too small for more
    yield
    torch.set_num_threads(before)


def furthest(curves):
    """The largest distance of two curves' losses."""
    ours, theirs = curves["fastconv"].losses, curves["torch"].losses
    assert len(ours) == len(theirs) > 100
    return max(abs(a - b) for a, b in zip(ours, theirs, strict=True))


# Measured over three seeds: 2e-7 to 5e-7 in float32 (torch against torch in float64: the same), 1e-15 in float64.
@pytest.mark.parametrize("activation, double, bound", [("tanh", False, 1e-5), ("relu", True, 1e-9)])
def test_same_loss_curve_and_over_95_percent(activation, double, bound):
    curves = example.compare(activation, double)
    assert furthest(curves) < bound
    for curve in curves.values():
        assert curve.losses[-1] < 0.5 * curve.losses[0]
        assert curve.accuracy > 0.95


def test_relu_in_float32_starts_alike_and_learns_as_well():
    curves = example.compare("relu")
    ours, theirs = curves["fastconv"], curves["torch"]
    # Later a rounding may switch a unit at its kink and training amplifies it, between two torch runs as well.
    assert max(abs(a - b) for a, b in zip(ours.losses[:20], theirs.losses[:20], strict=True)) < 1e-4
    assert ours.accuracy > 0.95
    assert theirs.accuracy > 0.95


def test_a_gradient_off_by_a_thousandth_is_caught():
    torch.manual_seed(0)
    right = example.lenet5()
    wrong = copy.deepcopy(right)
    wrong[0].weight.register_hook(lambda gradient: gradient * 1.001)
    data = example.digits()
    curves = {
        "torch": example.train(right, data, 5, 0, example.RATES["tanh"]),
        "fastconv": example.train(wrong, data, 5, 0, example.RATES["tanh"]),
    }
    assert furthest(curves) > 1e-5


def test_the_example_trains_fastconvs_layers():
    kinds = [type(module) for module in fastconv.convert(example.lenet5("relu"), fallback="error")]
    assert kinds.count(fnn.ConvReLU2d) == 2
    assert kinds.count(fnn.AvgPool2d) == 2


def test_command_line_prints_both_curves(capsys):
    example.main(["--epochs", "1", "--threads", "1"])
    printed = capsys.readouterr().out
    assert "torch" in printed.splitlines()[0]
    assert "fastconv" in printed.splitlines()[0]
    assert printed.count("of the held-out digits") == 2
