"""A case's layer by fastconv: the ordinary functions forward, the operators of the gradient passes."""

import fastconv
import fastconv.functional as FF
from fastconv import ops

from . import geometry as g


def forward(fields, t, algorithm):
    """The layer's output from its tensors `t` (operands.Tensors)."""
    return _KINDS[fields["kind"]](fields, t, algorithm)


def _conv(fields, t, algorithm):
    if not g.equal_pads(fields):  # torch's signature has no unequal pads, the operator does
        return fastconv.autograd.conv2d(
            t.x, t.weight, t.bias, t.residual, *_geometry(fields), g.activation_word(fields), algorithm,
            fastconv.get_accuracy(),
        )  # fmt: skip
    activation = None if g.activation(fields)[0] == "none" else g.activation_word(fields)
    return FF.conv2d(
        t.x, t.weight, t.bias, g.stride(fields), g.pads(fields)[:2], g.dilation(fields), fields["groups"],
        activation=activation, residual=t.residual, algorithm=algorithm,
    )  # fmt: skip


def _geometry(fields):
    return g.stride(fields), g.pads(fields), g.dilation(fields), fields["groups"]


def _conv_transpose(fields, t, algorithm):
    return FF.conv_transpose2d(
        t.x, t.weight, t.bias, g.stride(fields), g.pads(fields)[:2], g.output_padding(fields), fields["groups"],
        g.dilation(fields), algorithm=algorithm,
    )  # fmt: skip


def _max(fields, t, algorithm):
    if g.is_adaptive(fields):
        return FF.adaptive_max_pool2d(t.x, g.output_plane(fields))
    return FF.max_pool2d(t.x, *_max_arguments(fields))


def _max_arguments(fields):
    return g.window(fields), g.stride(fields), g.pads(fields)[:2], g.dilation(fields), fields["ceil_mode"]


def _avg(fields, t, algorithm):
    if g.is_adaptive(fields):
        return FF.adaptive_avg_pool2d(t.x, g.output_plane(fields))
    return FF.avg_pool2d(t.x, *g.avg_arguments(fields))


def _lp(fields, t, algorithm):
    return FF.lp_pool2d(t.x, fields["norm"], g.window(fields), g.stride(fields), fields["ceil_mode"])


_KINDS = {"conv": _conv, "conv_transpose": _conv_transpose, "max": _max, "avg": _avg, "lp": _lp}


def gradient(case, t, algorithm):
    """A function without arguments that returns [gradient, ...] of one gradient pass."""
    fields = case.fields
    kind, size = fields["kind"], t.x.shape
    if kind == "conv":
        return _conv_gradient(case, t, algorithm)
    if kind == "conv_transpose":
        return _conv_transpose_gradient(case, t, algorithm)
    if kind == "lp":
        shape = (float(fields["norm"]), g.window(fields), g.stride(fields), fields["ceil_mode"])
        return lambda: [ops.lp_pool2d_backward(t.dy, t.x, t.y, *shape)]
    plane = g.output_plane(fields)
    if kind == "avg":
        if g.is_adaptive(fields):
            return lambda: [ops.adaptive_avg_pool2d_backward(t.dy, size, plane)]
        return lambda: [ops.avg_pool2d_backward(t.dy, size, *g.avg_arguments(fields))]
    if g.is_adaptive(fields):
        offsets = ops.adaptive_max_pool2d(t.x, plane)[1]
        return lambda: [ops.adaptive_max_pool2d_backward(t.dy, offsets, size, plane)]
    shape = _max_arguments(fields)
    offsets = ops.max_pool2d(t.x, *shape)[1]
    return lambda: [ops.max_pool2d_backward(t.dy, offsets, size, *shape)]


def _conv_gradient(case, t, algorithm):
    fields = case.fields
    how = (*_geometry(fields), g.activation_word(fields), algorithm, fastconv.get_accuracy())
    if case.direction == "grad_input":
        return lambda: [ops.conv2d_grad_input(t.dy, t.weight, t.y, t.x.shape, *how)]
    bias = t.bias is not None

    def call():
        weight, of_bias = ops.conv2d_grad_weight(t.x, t.dy, t.y, t.weight.shape, bias, *how)
        return [weight, of_bias] if bias else [weight]

    return call


def _conv_transpose_gradient(case, t, algorithm):
    """Input and output of the convolution have changed places; the bias's gradient is a sum that no kernel does."""
    how = (*_geometry(case.fields), "none", algorithm, fastconv.get_accuracy())
    if case.direction == "grad_input":
        return lambda: [ops.conv2d(t.dy, t.weight, None, None, *how)]
    return lambda: [ops.conv2d_grad_weight(t.dy, t.x, None, t.weight.shape, False, *how)[0]]
