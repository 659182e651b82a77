"""From a description to models: torch's layers with random weights, and copies that share the linear layers."""

import copy
from collections import OrderedDict

import torch

from .layers import pair

LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}


def layouts_of(layer):
    """The layouts that make a difference to a layer."""
    return ("nchw",) if layer.kind == "linear" else tuple(LAYOUTS)


def build(network, seed=0):
    """The network as a torch.nn.Sequential in eval mode; each layer carries its name in the description.

    Weights are random: normal of deviation sqrt(2 / fan-in) (He et al. 2015), which keeps activations alive through
    any depth, biases uniform in [-0.1, 0.1]. The same seed gives the same model.
    """
    modules = OrderedDict()
    for layer, before, _ in network.walk():
        if layer.kind == "linear" and len(before) > 1:
            modules["flatten"] = torch.nn.Flatten()
        modules[layer.name] = _module(layer, before)
        if getattr(layer, "relu", False):
            modules[f"{layer.name}_relu"] = torch.nn.ReLU(inplace=True)
    model = torch.nn.Sequential(modules).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.uniform_(-0.1, 0.1, generator=generator)
            else:
                parameter.normal_(0, (2 / parameter[0].numel()) ** 0.5, generator=generator)
    return model


def _module(layer, before):
    # skip_init: torch's own initialisation of 138M parameters takes seconds and would be overwritten
    if layer.kind == "conv":
        return torch.nn.utils.skip_init(
            torch.nn.Conv2d,
            before[0],
            layer.k,
            pair(layer.kernel),
            pair(layer.stride),
            pair(layer.padding),
            groups=layer.groups,
            bias=layer.bias,
        )
    if layer.kind == "max":
        return torch.nn.MaxPool2d(layer.window, layer.stride, layer.padding, ceil_mode=layer.ceil_mode)
    if layer.kind == "avg":
        return torch.nn.AvgPool2d(layer.window, layer.stride, layer.padding, ceil_mode=layer.ceil_mode)
    inputs = 1
    for size in before:
        inputs *= size
    return torch.nn.utils.skip_init(torch.nn.Linear, inputs, layer.features, bias=layer.bias)


def twin(model, layout):
    """A copy of `model` in a layout. Linear layers, most of the memory and the same in all copies, are shared."""
    shared = {id(m): m for m in model.modules() if isinstance(m, torch.nn.Linear)}
    return copy.deepcopy(model, shared).to(memory_format=LAYOUTS[layout])
