"""Derivatives of any order: each operator's backward is made of other operators that have derivatives themselves.

Convolution is linear in its input and in its filter, so forward, grad_input and grad_weight are each other's
derivatives; transposed convolution is grad_input with a bias. Max-pooling picks elements: its backward puts them back,
whose transpose picks again. Average pooling and its backward transpose each other (see _pool_autograd.py).

An activation's derivative masks grad_output while the gradient passes load it. Where that derivative may itself be
differentiated and is not constant (elu, sigmoid, tanh), torch's operators make the mask instead.

The operators carry the same formulas (see ops.py), for those who call torch.ops.fastconv.* and for compiled graphs.
"""

import torch

from . import _activations as activations
from ._differentiable import Differentiable, transforming
from ._pool_autograd import POOLS
from ._shapes import transposed_sizes

# conf: stride, padding, dilation, groups, activation, algorithm, accuracy


def _linear(conf):
    return (*conf[:4], "none", *conf[5:])


def _mask(grad, y, conf):
    """grad times the activation's derivative, seen from its output."""
    return grad if y is None else activations.times_derivative(grad, y, conf[4])


def _for_passes(gy, y, conf):
    """The same, as the gradient passes take it: they mask by themselves, unless the mask has a derivative to keep."""
    differentiating = torch.is_grad_enabled() or transforming()
    if y is None or activations.is_linear(conf[4]) or not differentiating:
        return gy, y, conf
    return _mask(gy, y, conf), None, _linear(conf)


def _saved(ctx):
    """The saved tensors, the forward's output last; as the mask of a piecewise linear activation it is a constant."""
    *tensors, y = ctx.saved_tensors
    if y is not None and torch.is_grad_enabled() and activations.is_linear(ctx.conf[4]):
        y = y.detach()
    return *tensors, y


def _setup_conv2d(ctx, args, y, needs, save):
    x, w = args[:2]
    ctx.conf = args[4:]
    ctx.x_size, ctx.w_size, ctx.y_size = x.shape, w.shape, y.shape
    word = ctx.conf[4]
    if activations.needs_input(word):
        save(*args[:4])
    else:
        save(x if needs[1] else None, w if needs[0] else None, None if word == "none" else y)


def _recompute(ctx):
    """x, w and the activation's input, of which nothing was saved."""
    x, w, b, residual = ctx.saved_tensors
    return x, w, conv2d(x, w, b, residual, *_linear(ctx.conf))


def _backward_conv2d(ctx, gy):
    needs = ctx.needs_input_grad
    conf = ctx.conf
    if activations.needs_input(conf[4]):
        x, w, z = _recompute(ctx)
        gy, y, conf = activations.times_derivative_of_input(gy, z, conf[4]), None, _linear(conf)
    else:
        x, w, y = _saved(ctx)
        if needs[3]:  # the residual's gradient is the masked gy: then the other passes may as well read that
            gy, y, conf = _mask(gy, y, conf), None, _linear(conf)
        gy, y, conf = _for_passes(gy, y, conf)
    gx = gw = gb = None
    if needs[0]:
        gx = grad_input(gy, w, y, ctx.x_size, *conf)
    if needs[1]:
        gw, gb = grad_weight(x, gy, y, ctx.w_size, needs[2], *conf)
    elif needs[2]:
        gb = _grad_bias(_mask(gy, y, conf), ctx.w_size[0])
    return gx, gw, gb if needs[2] else None, gy if needs[3] else None


def _grad_bias(gy, channels):
    return gy.sum((0, 2, 3)) if gy.shape[1] == channels else gy.new_zeros(channels)  # no channels: no output


def _per_channel(bias, shape):
    return bias.view(1, -1, 1, 1).expand(shape) if bias.shape[0] == shape[1] else bias.new_zeros(shape)


def _jvp_conv2d(ctx, dx, dw, db, dres):
    conf = _linear(ctx.conf)
    if activations.needs_input(ctx.conf[4]):
        x, w, z = _recompute(ctx)
    else:
        x, w, y = _saved(ctx)
    if dx is not None:
        t = conv2d(dx, w, db, dres, *conf)
        if dw is not None:
            t = t + conv2d(x, dw, None, None, *conf)
    elif dw is not None:
        t = conv2d(x, dw, db, dres, *conf)
    elif db is not None:
        t = _per_channel(db, ctx.y_size)
        t = t if dres is None else t + dres
    else:
        t = dres
    if activations.needs_input(ctx.conf[4]):
        return activations.times_derivative_of_input(t, z, ctx.conf[4])
    return _mask(t, y, ctx.conf)


# --- the gradient passes -----------------------------------------------------------------------------------
# Their argument `output` has a gradient too, if the activation is not piecewise linear.


def _has_curvature(conf):
    return conf[4] != "none" and not activations.is_linear(conf[4])


def _setup_grad_input(ctx, args, gx, needs, save):
    gy, w, y = args[:3]
    ctx.conf = args[4:]
    ctx.x_size, ctx.w_size = args[3], w.shape
    curved = needs[2] and _has_curvature(ctx.conf)
    save(gy if needs[1] or curved else None, w if needs[0] or curved else None, y)


def _backward_grad_input(ctx, ggx):
    gy, w, y = _saved(ctx)
    needs = ctx.needs_input_grad
    curved = needs[2] and _has_curvature(ctx.conf)
    ggy = gw = g_output = None
    if needs[0] or curved:
        t = conv2d(ggx, w, None, None, *_linear(ctx.conf))
        ggy = _mask(t, y, ctx.conf)
        if curved:
            g_output = activations.times_second_derivative(t * gy, y, ctx.conf[4])
    if needs[1]:
        masked, y, conf = _for_passes(gy, y, ctx.conf)
        gw, _ = grad_weight(ggx, masked, y, ctx.w_size, False, *conf)
    return ggy, gw, g_output


def _jvp_grad_input(ctx, dgy, dw, dy):
    gy, w, y = _saved(ctx)
    terms = []
    if dgy is not None:
        masked, mask, conf = _for_passes(dgy, y, ctx.conf)
        terms.append(grad_input(masked, w, mask, ctx.x_size, *conf))
    if dw is not None:
        masked, mask, conf = _for_passes(gy, y, ctx.conf)
        terms.append(grad_input(masked, dw, mask, ctx.x_size, *conf))
    if dy is not None and _has_curvature(ctx.conf):
        curve = activations.times_second_derivative(gy * dy, y, ctx.conf[4])
        terms.append(grad_input(curve, w, None, ctx.x_size, *_linear(ctx.conf)))
    return sum(terms[1:], terms[0]) if terms else None


def _setup_grad_weight(ctx, args, output, needs, save):
    x, gy, y = args[:3]
    ctx.bias = args[4]
    ctx.conf = args[5:]
    ctx.x_size, ctx.gy_size, ctx.w_size = x.shape, gy.shape, args[3]
    curved = needs[2] and _has_curvature(ctx.conf)
    save(x if needs[1] or curved else None, gy if needs[0] or curved else None, y)


def _backward_grad_weight(ctx, ggw, ggb):
    x, gy, y = _saved(ctx)
    needs = ctx.needs_input_grad
    if not ctx.bias:
        ggb = None
    curved = needs[2] and _has_curvature(ctx.conf)
    gx = ggy = g_output = None
    if needs[0] and ggw is not None:
        masked, mask, conf = _for_passes(gy, y, ctx.conf)
        gx = grad_input(masked, ggw, mask, ctx.x_size, *conf)
    if (needs[1] or curved) and (ggw is not None or ggb is not None):
        if ggw is not None:
            t = conv2d(x, ggw, ggb, None, *_linear(ctx.conf))
        else:
            t = _per_channel(ggb, ctx.gy_size)
        ggy = _mask(t, y, ctx.conf)
        if curved:
            g_output = activations.times_second_derivative(t * gy, y, ctx.conf[4])
    return gx, ggy, g_output


def _jvp_grad_weight(ctx, dx, dgy, dy):
    x, gy, y = _saved(ctx)
    tw = tb = None
    if dgy is not None:
        masked, mask, conf = _for_passes(dgy, y, ctx.conf)
        tw, tb = grad_weight(x, masked, mask, ctx.w_size, ctx.bias, *conf)
    if dy is not None and _has_curvature(ctx.conf):
        curve = activations.times_second_derivative(gy * dy, y, ctx.conf[4])
        cw, cb = grad_weight(x, curve, None, ctx.w_size, ctx.bias, *_linear(ctx.conf))
        tw, tb = (cw, cb) if tw is None else (tw + cw, tb + cb)
    if dx is not None:
        masked, mask, conf = _for_passes(gy, y, ctx.conf)
        t, empty = grad_weight(dx, masked, mask, ctx.w_size, False, *conf)
        tw = t if tw is None else tw + t
        if tb is None:
            tb = gy.new_zeros(ctx.w_size[0]) if ctx.bias else empty
    return tw, tb


conv2d = Differentiable("conv2d", 4, _setup_conv2d, _backward_conv2d, _jvp_conv2d)
grad_input = Differentiable("conv2d_grad_input", 3, _setup_grad_input, _backward_grad_input, _jvp_grad_input)
grad_weight = Differentiable("conv2d_grad_weight", 3, _setup_grad_weight, _backward_grad_weight, _jvp_grad_weight)


# --- transposed convolution --------------------------------------------------------------------------------


def _setup_conv_transpose2d(ctx, args, y, needs, save):
    x, w = args[:2]
    stride, padding, output_padding, groups, dilation, *rest = args[3:]
    ctx.arguments_after_bias = args[3:]
    ctx.w_size, ctx.y_size = w.shape, y.shape
    _, ctx.reached, sides = transposed_sizes(x.shape, w.shape, stride, padding, output_padding, groups, dilation)
    ctx.conf = (stride, sides, dilation, groups, "none", *rest)
    save(x if needs[1] else None, w if needs[0] else None)


def _backward_conv_transpose2d(ctx, gy):
    x, w = ctx.saved_tensors
    needs = ctx.needs_input_grad
    gx = gw = gb = None
    inner = gy
    for dim in (2, 3):
        if gy.shape[dim] != ctx.reached[dim]:  # beyond lies the bias alone
            inner = inner.narrow(dim, 0, ctx.reached[dim])
    if needs[0]:
        gx = conv2d(inner, w, None, None, *ctx.conf)
    if needs[1]:
        gw, _ = grad_weight(inner, x, None, ctx.w_size, False, *ctx.conf)
    if needs[2]:
        gb = _grad_bias(gy, ctx.y_size[1])
    return gx, gw, gb


def _jvp_conv_transpose2d(ctx, dx, dw, db):
    x, w = ctx.saved_tensors
    if dx is None and dw is None:
        return _per_channel(db, ctx.y_size)
    args = ctx.arguments_after_bias
    if dx is None:
        return conv_transpose2d(x, dw, db, *args)
    t = conv_transpose2d(dx, w, db, *args)
    return t if dw is None else t + conv_transpose2d(x, dw, None, *args)


conv_transpose2d = Differentiable(
    "conv_transpose2d", 3, _setup_conv_transpose2d, _backward_conv_transpose2d, _jvp_conv_transpose2d
)


class _ForInference:
    """In place of a derivative that nobody needs: modules use the operator only where none is wanted."""

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        raise RuntimeError("fastconv: this operator is for inference and has no derivative; use conv2d")


FORMULAS = {d.name: d for d in (conv2d, grad_input, grad_weight, conv_transpose2d)} | POOLS
FORMULAS["conv2d_batch_norm"] = FORMULAS["conv2d_max_pool2d"] = _ForInference
