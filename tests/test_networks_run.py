"""Every network, end to end: converted by fastconv.convert it computes what torch computes, forward and backward."""

import dataclasses
import functools
import warnings

import fastconv
import pytest
import torch
from benchmarks import models, modules, networks
from benchmarks.networks.fcn import fcn8s
from benchmarks.networks.xception import xception

# The smallest square images that each architecture takes, or nearly; all others run at their full size. Linear layers
# and pools follow the image's size; in Xception pads do, in FCN-8s crops; FCN-8s gets an eighth of its filters.
IMAGES = {
    **dict.fromkeys(("alexnet", "alexnet-ungrouped", "zfnet"), 67),
    **dict.fromkeys(("vgg11", "vgg13", "vgg16-c", "vgg16", "vgg19"), 32),
    **dict.fromkeys(("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "se-resnet50"), 64),
    **dict.fromkeys(("bn-inception", "se-inception"), 64),
    **{"googlenet": 80, "inception-v4": 75},
}
MADE = {"xception": lambda: xception(71), "fcn8s": lambda: fcn8s(32, 40, filters=8)}
FLOOR = 2.0**-21
# one of each kind of block, small enough for float64
TRAINED = ("lenet5", "googlenet", "se-inception", "resnet18", "se-resnet50", "xception", "fcn8s", "course-same")


def small(name):
    if name in MADE:
        return MADE[name]()
    network = networks.NETWORKS[name]
    size = IMAGES.get(name)
    return dataclasses.replace(network, input_shape=(network.input_shape[0], size, size)) if size else network


def converted(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return fastconv.convert(model)


def batch(network, count=2):
    return torch.randn(count, *network.input_shape, generator=torch.Generator().manual_seed(1))


def error(result, reference):
    assert result.shape == reference.shape
    difference = (result.detach().double() - reference.detach()).abs().max()
    return float(difference / reference.detach().abs().max())


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_a_converted_network_infers_what_torch_infers(name):
    network = small(name)
    model = models.build(network)
    ours = converted(model)
    convolutions = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    replaced = [m for m in ours.modules() if isinstance(m, fastconv.nn.Conv2d)]
    assert len(replaced) == len(convolutions) == sum(layer.kind == "conv" for layer, _, _ in network.walk(True))
    x = batch(network)
    with torch.no_grad():
        y, z = model(x), ours(x)
        reference = model.double()(x.double())
    assert bool(torch.isfinite(reference).all())
    assert float(reference.std()) > 1e-4
    # both differ from float64 by the roundings of up to 150 layers
    assert error(z, reference) <= 2 * error(y, reference) + FLOOR


def training_step(model, x):
    """(outputs, gradients by name, buffers after the step)"""
    outputs = model(x)
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(models.loss(outputs, torch.arange(len(x))), list(parameters.values()))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return outputs, dict(zip(parameters, gradients, strict=True)), dict(model.named_buffers())


@pytest.mark.parametrize("name", TRAINED)
def test_a_converted_network_trains_as_torch_does(name):
    """In float64: there no rounding moves a value across ReLU's kink, and the two sides agree in every gradient."""
    network = small(name)
    model = models.build(network).double().train()
    ours = converted(model).train()
    x = batch(network).double()
    expected, found = training_step(model, x), training_step(ours, x)
    assert len(found[0]) == len(expected[0]) == (3 if name == "googlenet" else 1)
    for mine, its in zip(found[0], expected[0], strict=True):
        assert error(mine, its) < 1e-10
    for mine, its in zip(found[1:], expected[1:], strict=True):
        assert list(mine) == list(its)
        for key in its:
            assert bool(torch.isfinite(its[key]).all())
            scale = its[key].abs().max().clamp(min=1e-12)
            assert float((mine[key] - its[key]).abs().max() / scale) < 1e-8, key
    assert all(float(gradient.abs().max()) > 0 for gradient in expected[1].values())


def test_heads_count_less_in_the_loss():
    scores, labels = torch.randn(4, 7), torch.tensor([0, 6, 3, 3])
    one = -scores.log_softmax(1)[range(4), labels].mean()
    torch.testing.assert_close(models.loss(scores, labels), one)
    torch.testing.assert_close(models.loss((scores, scores, scores), labels), 1.6 * one)
    maps = torch.randn(4, 7, 2, 2)
    assert torch.equal(models.loss(maps, labels), maps.sum())


def test_blocks_are_fused():
    network = small("resnet18")
    report = fastconv.conversion_report(converted(models.build(network)))
    lines = {line.split()[0]: line for line in report.splitlines()}
    assert "BatchNorm2d" in lines["conv2_1.conv1"]
    assert "ReLU" in lines["conv2_1.conv1"]
    assert "folds 'conv2_1.conv2_bn', the residual and ReLU" in lines["conv2_1.conv2"]
    blocks = {name: block for name, block in models.build(network).named_modules() if isinstance(block, modules.Add)}
    assert len(blocks) == 8
    for name, block in blocks.items():  # the convolution that runs last has what the sum needs
        last = "conv2" if block.projection is None else "projection"
        assert "the residual and ReLU" in lines[f"{name}.{last}"]


@pytest.mark.parametrize("name, blocks", [("resnet50", 16), ("se-resnet50", 16), ("xception", 12)])
def test_residual_blocks_compute_what_their_paths_say(name, blocks):
    """The blocks that are written out are those of the generic sum."""
    network = small(name)
    model = models.build(network)
    found = [module for module in model.modules() if isinstance(module, modules.Add)]
    assert len(found) == blocks
    assert all(isinstance(block, modules.Residual) == (name != "xception") for block in found)
    x = batch(network)
    with torch.no_grad():
        y = model(x)
        for block in found:
            block.forward = functools.partial(modules.Add.forward, block)
        torch.testing.assert_close(model(x), y)


@pytest.mark.parametrize("name", ["googlenet", "resnet18", "se-inception"])
def test_channels_last_gives_the_same(name):
    network = small(name)
    model = models.build(network)
    x = batch(network)
    with torch.no_grad():
        y = model(x)
        ours = converted(models.twin(model, "nhwc"))
        z = ours(x.to(memory_format=torch.channels_last))
    assert error(z, y.double()) < 1e-5
