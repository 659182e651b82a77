"""A case's layer by PyTorch: its forward pass, and its gradients as autograd runs them."""

import torch
import torch.nn.functional as F

from . import activations
from . import geometry as g


def forward(fields, x, weight=None, bias=None, residual=None, best=False):
    """PyTorch's function of the same name, as a layer uses it: activations in place, unequal pads by F.pad. `best`:
    what else PyTorch has for the problem, if that is faster: a mean for averages over whole maps
    (AdaptiveAvgPool2d(1))."""
    return _finished(fields, _KINDS[fields["kind"]](fields, x, weight, bias, best), residual)


def _finished(fields, y, residual):
    if residual is not None:
        y = y + residual if torch.is_grad_enabled() and y.requires_grad else y.add_(residual)
    return activations.apply(fields, y)


def is_depthwise(fields):
    return fields["kind"] == "conv" and fields["groups"] == fields["c"] == fields["k"]


def depthwise(fields, x, weight, bias=None, residual=None):
    """`forward` of a depthwise convolution as a sum of shifted maps: in float64, where PyTorch's own runs channel by
    channel, in a third of the time."""
    top, left, bottom, right = g.pads(fields)
    x = F.pad(x, (left, right, top, bottom))
    (p, q), (u, v), (d, e) = g.output_plane(fields), g.stride(fields), g.dilation(fields)
    y = x.new_zeros(()) if bias is None else bias.view(-1, 1, 1)
    y = y.expand(len(x), fields["k"], p, q).clone()
    for r in range(fields["r"]):
        for s in range(fields["s"]):
            seen = x[:, :, r * d : r * d + (p - 1) * u + 1 : u, s * e : s * e + (q - 1) * v + 1 : v]
            y = torch.addcmul(y, seen, weight[:, 0, r, s].view(-1, 1, 1))
    return _finished(fields, y, residual)


def _linear(fields, x, weight, bias, best):
    return F.linear(x.flatten(1), weight, bias)


def _conv(fields, x, weight, bias, best):
    if not g.equal_pads(fields):
        top, left, bottom, right = g.pads(fields)
        x = F.pad(x, (left, right, top, bottom))
    return F.conv2d(x, weight, bias, g.stride(fields), g.operator_pad(fields), g.dilation(fields), fields["groups"])


def _conv_transpose(fields, x, weight, bias, best):
    return F.conv_transpose2d(
        x, weight, bias, g.stride(fields), g.pads(fields)[:2], g.output_padding(fields), fields["groups"],
        g.dilation(fields),
    )  # fmt: skip


def _max(fields, x, weight, bias, best):
    if g.is_adaptive(fields):
        return F.adaptive_max_pool2d(x, g.output_plane(fields))
    return F.max_pool2d(x, *_max_arguments(fields))


def _max_arguments(fields):
    return g.window(fields), g.stride(fields), g.pads(fields)[:2], g.dilation(fields), fields["ceil_mode"]


def _avg(fields, x, weight, bias, best):
    if g.is_adaptive(fields):
        return F.adaptive_avg_pool2d(x, g.output_plane(fields))
    if best and g.is_global(fields):
        return F.adaptive_avg_pool2d(x, 1)
    return F.avg_pool2d(x, *g.avg_arguments(fields))


def _lp(fields, x, weight, bias, best):
    return F.lp_pool2d(x, fields["norm"], g.window(fields), g.stride(fields), fields["ceil_mode"])


_KINDS = {"linear": _linear, "conv": _conv, "conv_transpose": _conv_transpose, "max": _max, "avg": _avg, "lp": _lp}


def gradient(case, t, best=False):
    """f(dy, x, weight, y) -> [gradient, ...]. What forward would have kept (indices of maxima, the graph of LP
    pooling) is made beforehand from `t` (operands.Tensors).

    Raises:
        ValueError: it does not follow from these operands.
    """
    fields, aten = case.fields, torch.ops.aten
    if fields["kind"] in g.CONVOLUTIONS:
        return _conv_gradient(case, t)
    if fields["kind"] == "lp":
        return _lp_gradient(fields, t)
    if fields["kind"] == "avg":
        if g.is_adaptive(fields):
            return lambda dy, x, weight, y: [aten._adaptive_avg_pool2d_backward(dy, x)]
        if best and g.is_global(fields):
            count = fields["h"] * fields["w"]
            return lambda dy, x, weight, y: [dy.expand_as(x) / count]
        arguments = g.avg_arguments(fields)
        return lambda dy, x, weight, y: [aten.avg_pool2d_backward(dy, x, *arguments)]
    if g.is_adaptive(fields):
        indices = aten.adaptive_max_pool2d(t.x, g.output_plane(fields))[1]
        return lambda dy, x, weight, y: [aten.adaptive_max_pool2d_backward(dy, x, indices)]
    arguments = _max_arguments(fields)
    indices = aten.max_pool2d_with_indices(t.x, *arguments)[1]
    return lambda dy, x, weight, y: [aten.max_pool2d_with_indices_backward(dy, x, *arguments, indices)]


def _lp_gradient(fields, t):
    with torch.enable_grad():
        x = t.x.detach().requires_grad_()
        output = _lp(fields, x, None, None, False)
    return lambda dy, _, weight, y: list(torch.autograd.grad(output, x, dy, retain_graph=True))


def _conv_gradient(case, t):
    fields, wants_weight = case.fields, case.direction == "grad_weight"
    transposed = fields["kind"] == "conv_transpose"
    top, left, bottom, right = g.pads(fields)
    equal, masked = g.equal_pads(fields), activations.derivative(fields)
    wants_bias = wants_weight and t.bias is not None and not transposed
    bias_sizes = [g.bias_size(fields)] if wants_bias else None
    more = g.output_padding(fields) if transposed else [0, 0]
    geometry = (g.stride(fields), g.operator_pad(fields), g.dilation(fields), transposed, more, fields["groups"])
    mask = [not wants_weight, wants_weight, wants_bias]

    def run(dy, x, weight, y):
        dy = masked(dy, y)
        if not equal:
            x = F.pad(x, (left, right, top, bottom))
        found = torch.ops.aten.convolution_backward(dy, x, weight, bias_sizes, *geometry, mask)
        if not wants_weight:
            padded = found[0]
            return [padded if equal else padded[:, :, top : padded.shape[2] - bottom, left : padded.shape[3] - right]]
        return [found[1], found[2]] if wants_bias else [found[1]]

    return run
