"""PyTorch's own operators for one layer, as functions of their operands: what is timed, and what it is checked by."""

import torch
import torch.nn.functional as F

from ..layers import pair


def conv_calls(layer):
    """{variant: f(x, weight, bias, dy)}, each returning one tensor.

    forward_bias_relu is what eager PyTorch runs: a convolution, a bias added by it, ReLU in place.
    forward_bias_relu_fused is cuDNN's one kernel for all three, which only some PyTorch users reach; CUDA only.
    """
    stride, padding, groups = list(pair(layer.stride)), list(pair(layer.padding)), layer.groups

    def gradient(which):
        mask = [which == 0, which == 1, False]

        def call(x, weight, bias, dy):
            none, one = [0, 0], [1, 1]
            return torch.ops.aten.convolution_backward(
                dy, x, weight, None, stride, padding, one, False, none, groups, mask
            )[which]

        return call

    return {
        "forward": lambda x, w, b, dy: F.conv2d(x, w, None, stride, padding, 1, groups),
        "forward_bias_relu": lambda x, w, b, dy: F.conv2d(x, w, b, stride, padding, 1, groups).relu_(),
        "forward_bias_relu_fused": lambda x, w, b, dy: torch.ops.aten.cudnn_convolution_relu(
            x, w, b, stride, padding, [1, 1], groups
        ),
        "grad_input": gradient(0),
        "grad_weight": gradient(1),
    }


def pool_calls(layer, shape):
    """{variant: f(x, dy, indices)}; `indices` are of max_indices, for max-pooling's gradient.

    Pools over the whole map have a second variant each, which AdaptiveAvgPool2d(1) runs: a mean, and its gradient.
    """
    window, stride, padding = list(pair(layer.window)), list(pair(layer.stride)), list(pair(layer.padding))
    ceil = layer.ceil_mode
    if layer.kind == "max":
        return {
            "forward": lambda x, dy, i: F.max_pool2d(x, window, stride, padding, 1, ceil),
            "grad_input": lambda x, dy, i: torch.ops.aten.max_pool2d_with_indices_backward(
                dy, x, window, stride, padding, [1, 1], ceil, i
            ),
        }
    calls = {
        "forward": lambda x, dy, i: F.avg_pool2d(x, window, stride, padding, ceil),
        "grad_input": lambda x, dy, i: torch.ops.aten.avg_pool2d_backward(
            dy, x, window, stride, padding, ceil, True, None
        ),
    }
    if tuple(window) == tuple(shape[1:]):
        calls["forward_mean"] = lambda x, dy, i: F.adaptive_avg_pool2d(x, 1)
        calls["grad_input_mean"] = lambda x, dy, i: dy.expand(x.shape) / (x.shape[2] * x.shape[3])
    return calls


def max_indices(layer, x):
    """The places of the largest values, as torch keeps them for max-pooling's gradient."""
    return F.max_pool2d(x, layer.window, layer.stride, layer.padding, 1, layer.ceil_mode, return_indices=True)[1]


def gemm_call(a, b):
    """a (m, k) times the transpose of b (n, k): both contiguous along the sum, as NHWC data and filters are."""
    return torch.mm(a, b.t())


def direction_of(variant):
    """The pass of a variant: forward, grad_input or grad_weight."""
    return next(name for name in ("forward", "grad_input", "grad_weight") if variant.startswith(name))


def conv_reference(layer, variant, x, weight, bias, dy, on="cpu"):
    """The variant in float64 on the device `on`, by autograd where it is a gradient."""
    x, weight, bias, dy = (t.detach().to(on, torch.float64).contiguous() for t in (x, weight, bias, dy))
    fused = variant.startswith("forward_bias_relu")
    with torch.enable_grad():
        x.requires_grad_(variant == "grad_input")
        weight.requires_grad_(variant == "grad_weight")
        y = F.conv2d(x, weight, bias if fused else None, pair(layer.stride), pair(layer.padding), 1, layer.groups)
        if variant.startswith("forward"):
            return y.relu() if fused else y
        return torch.autograd.grad(y, x if variant == "grad_input" else weight, dy)[0]


def pool_reference(layer, variant, x, dy, indices, on="cpu"):
    """The same for a pool. Max-pooling's gradient goes where `indices` say: equal values leave a choice."""
    x, dy = (t.detach().to(on, torch.float64).contiguous() for t in (x, dy))
    args = (layer.window, layer.stride, layer.padding)
    if layer.kind == "max":
        if variant == "forward":
            return F.max_pool2d(x, *args, 1, layer.ceil_mode)
        places = indices.to(on).contiguous().flatten(2)
        return torch.zeros_like(x).flatten(2).scatter_add_(2, places, dy.flatten(2)).view(x.shape)
    with torch.enable_grad():
        y = F.avg_pool2d(x.requires_grad_(), *args, layer.ceil_mode)
        return y.detach() if variant.startswith("forward") else torch.autograd.grad(y, x, dy)[0]


def distance(result, reference):
    """||result - reference|| / ||reference||; infinite for a wrong shape, NaN or infinity."""
    result = result.detach().to(reference.device, torch.float64)
    if result.shape != reference.shape or not bool(torch.isfinite(result).all()):
        return float("inf")
    norm = float(reference.norm())
    return float((result - reference).norm()) / norm if norm > 0 else float("inf")
