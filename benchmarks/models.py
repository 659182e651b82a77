"""From a description to models: torch's layers with random weights, and copies that share the linear layers."""

import copy
from collections import OrderedDict

import torch
from torch.nn import BatchNorm2d

from . import formulas as f
from .blocks import Branches, shape_after
from .layers import GlobalAvgPool, pair
from .modules import JOINS, Add, Bias, Crop, Residual, Trunk

LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}


def layouts_of(layer):
    """The layouts that make a difference to a layer."""
    return ("nchw",) if layer.kind == "linear" else tuple(LAYOUTS)


def build(network, seed=0, device="cpu"):
    """The network as a torch.nn.Module in eval mode; a layer's module bears its path: `model.get_submodule(path)`.

    Convolution, batch normalisation and ReLU are three modules: "conv1", "conv1_bn", "conv1_relu"; the ReLU of a
    residual block is in it, "conv2_1.relu". A network with
    auxiliary heads returns (output, heads' outputs...) in training.

    Weights are random: normal of deviation sqrt(2 / fan-in) (He et al. 2015), which keeps activations alive through
    any depth, biases uniform in [-0.1, 0.1]. Running means are uniform in [-0.1, 0.1], variances and scales in
    [0.5, 1.5]; the scale that ends a residual body is a quarter of that, or sums would grow with every block. The same
    seed gives the same model.

    Args:
        device: "meta" makes a model without memory for its weights, to look at shapes.
    """
    modules = OrderedDict(_modules(network.layers, network.input_shape, device))
    heads = [item.name for item in network.layers if item.kind == "head"]
    model = Trunk(modules, heads) if heads else torch.nn.Sequential(modules)
    if torch.device(device).type != "meta":
        _initialise(model, torch.Generator().manual_seed(seed))
    return model.eval()


def _initialise(model, generator):
    def uniform(tensor, low, high):
        tensor.uniform_(low, high, generator=generator)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, BatchNorm2d):
                for tensor in (module.weight, module.running_var):
                    uniform(tensor, 0.5, 1.5)
                for tensor in (module.bias, module.running_mean):
                    uniform(tensor, -0.1, 0.1)
                continue
            for name, parameter in module.named_parameters(recurse=False):
                if name == "bias":
                    uniform(parameter, -0.1, 0.1)
                else:
                    parameter.normal_(0, (2 / _fan_in(module)) ** 0.5, generator=generator)
        for block in model.modules():
            if isinstance(block, Add):
                norms = [module for name in block.paths[0] if isinstance(module := getattr(block, name), BatchNorm2d)]
                for norm in norms[-1:]:
                    norm.weight *= 0.25


def _fan_in(module):
    """Products in each sum. A transposed convolution's output meets kernel / stride positions along each axis."""
    if isinstance(module, torch.nn.ConvTranspose2d):
        return max(1, module.weight[:, 0].numel() // (module.stride[0] * module.stride[1]))
    return module.weight[0].numel()


def _modules(items, shape, device):
    """Yield (name, module) for a sequence of layers and blocks."""
    for item in items:
        after = item.output_shape(shape)
        if item.kind == "linear" and len(shape) > 1:
            yield "flatten", torch.nn.Flatten()
        yield item.name, _module(item, shape, device)
        if getattr(item, "norm", False):
            yield f"{item.name}_bn", BatchNorm2d(item.k, device=device)
        if getattr(item, "relu", False) and item.kind != "add":  # that one has it inside
            yield f"{item.name}_relu", torch.nn.ReLU(inplace=True)
        shape = after


def _module(item, shape, device):
    if isinstance(item, Branches):
        return _join(item, shape, device)
    if item.kind == "head":
        return torch.nn.Sequential(OrderedDict(_modules(item.layers, shape, device)))
    if item.kind in ("max", "avg"):
        return _pool(item)
    if item.kind == "activation":
        return _activation(item.function)
    if item.kind == "bias":
        return Bias(shape, device)
    if item.kind == "crop":
        return Crop(item.size, item.offset)
    # skip_init: torch's own initialisation of 138M parameters takes seconds and would be overwritten
    make = torch.nn.utils.skip_init
    if item.kind == "linear":
        return make(torch.nn.Linear, f.elements(shape), item.features, bias=item.bias, device=device)
    sizes = shape[0], item.k, pair(item.kernel), pair(item.stride)
    if item.kind == "conv_transpose":
        return make(torch.nn.ConvTranspose2d, *sizes, pair(item.padding), bias=item.bias, device=device)
    padding = item.padding if item.padding == "same" else pair(item.padding)
    return make(torch.nn.Conv2d, *sizes, padding, groups=item.groups, bias=item.bias, device=device)


def _join(block, shape, device):
    paths = [OrderedDict(_modules(path, shape, device)) for path in block.paths]
    if block.crop is not None:
        smallest = block.smallest(shape)
        for number, (path, modules) in enumerate(zip(block.paths, paths, strict=True)):
            crop = block.cropped(shape_after(path, shape), smallest)
            if crop.offset:
                modules[f"crop{number}"] = Crop(crop.size, crop.offset)
    if block.join != "add":
        return JOINS[block.join](paths)
    return Residual(paths) if block.relu and Residual.fits(paths) else Add(paths, block.relu)


def _pool(layer):
    if isinstance(layer, GlobalAvgPool):
        return torch.nn.AdaptiveAvgPool2d(1)
    if layer.kind == "max":
        return torch.nn.MaxPool2d(layer.window, layer.stride, layer.padding, ceil_mode=layer.ceil_mode)
    return torch.nn.AvgPool2d(layer.window, layer.stride, layer.padding, layer.ceil_mode, layer.count_include_pad)


def _activation(function):
    if function == "softmax":
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(1))
    return {"relu": torch.nn.ReLU, "sigmoid": torch.nn.Sigmoid}[function]()


def weight_and_bias(model, path):
    """What a kernel is given for the layer at `path` of `build`'s model: of a convolution with batch normalisation, in
    eval mode, the folded weight and bias; else the layer's own (bias None if it has none)."""
    module = model.get_submodule(path)
    weight, bias = module.weight.detach(), None if module.bias is None else module.bias.detach()
    owner, _, name = path.rpartition(".")
    norm = model.get_submodule(owner)._modules.get(f"{name}_bn")
    if norm is None or norm.training:
        return weight, bias
    scale = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
    shift = norm.bias.detach() - norm.running_mean * scale
    return weight * scale[:, None, None, None], shift if bias is None else shift + bias * scale


def loss(outputs, labels):
    """What a training step minimises: the cross entropy of the model's output and the classes `labels` (batch,), plus
    0.3 times that of each auxiliary head (Szegedy et al., arXiv:1409.4842, section 5). Of an output that scores no
    classes, its sum.

    Args:
        outputs: what the model returned in training: a tensor, or with heads a tuple of (batch, classes) each.
    """
    main, *asides = outputs if isinstance(outputs, tuple) else (outputs,)
    if main.dim() != 2:
        return main.sum()
    cross_entropy = torch.nn.functional.cross_entropy
    return cross_entropy(main, labels) + sum(0.3 * cross_entropy(aside, labels) for aside in asides)


def twin(model, layout):
    """A copy of `model` in a layout. Linear layers, most of the memory and the same in all copies, are shared."""
    shared = {id(m): m for m in model.modules() if isinstance(m, torch.nn.Linear)}
    return copy.deepcopy(model, shared).to(memory_format=LAYOUTS[layout])
