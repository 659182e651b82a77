"""Derivatives of any order: each operator's backward is made of other operators that have derivatives themselves.

Convolution is linear in its input and in its filter, so forward, grad_input and grad_weight are each other's
derivatives. Max-pooling picks elements: its backward puts them back, whose transpose picks again. Average pooling and
its backward transpose each other.

Every operator here is a callable of the operator's own arguments that finds its way by the state of torch:

* compiling, or no gradient wanted: the operator itself;
* eager autograd: a plain torch.autograd.Function (5 us where `setup_context` costs 30);
* torch.func transforms and forward-mode AD: a Function with `setup_context`, `vmap` and `jvp`. torch.compile cannot
  trace a Function that has a `jvp`, but never sees one.

The operators carry the same formulas (see ops.py), for those who call torch.ops.fastconv.* and for compiled graphs.
"""

import torch
from torch.autograd import forward_ad

from . import ops


class Differentiable:
    """An operator with its derivative.

    tensors: how many leading arguments are tensors (or None).
    setup(ctx, args, output, needs, save): keeps on ctx what backward (and jvp) will read; needs[i]: whether argument
    i's gradient is wanted; save(*tensors) keeps tensors. backward(ctx, *grads) returns the gradients of the tensors,
    jvp(ctx, *tangents) is given those of the tensors.
    """

    def __init__(self, name, tensors, setup, backward, jvp):
        self.name = name
        self._short_way = f"eager_{name}"
        self.tensors = tensors
        self._setup = setup
        self._backward = backward
        self._jvp = jvp
        # Function.apply looks for setup_context and functorch's wrappers first, 2.5 us for nothing: a plain Function has
        # none, and __call__ has looked for transforms. Its base class does the rest.
        self._apply_plain = super(torch.autograd.Function, self._make_plain()).apply
        self._apply_transformed = self._make_transformed().apply

    def __call__(self, *args):
        if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
            return self._apply_transformed(*args)
        if torch.is_grad_enabled():
            for tensor in args[: self.tensors]:
                if tensor is not None and tensor.requires_grad:
                    return self._apply_plain(*args)
        return self.run(*args)

    def run(self, *args):
        """The operator, without a derivative."""
        output = getattr(ops, self._short_way)(*args)
        return getattr(ops, self.name)(*args) if output is None else output

    # As torch.library.register_autograd takes them.

    def setup_context(self, ctx, inputs, output):
        ctx.set_materialize_grads(False)
        ctx.arguments = len(inputs)
        self._setup(ctx, inputs, output, ctx.needs_input_grad, ctx.save_for_backward)

    def backward(self, ctx, *grads):
        for grad in grads:
            if grad is not None:
                found = self._backward(ctx, *grads)
                return found + (None,) * (ctx.arguments - len(found))
        return (None,) * ctx.arguments

    def _make_plain(self):
        def forward(ctx, *args):
            output = self.run(*args)
            self.setup_context(ctx, args, output)
            return output

        return self._make_function("", forward=forward)

    def _make_transformed(self):
        def setup_context(ctx, inputs, output):
            ctx.set_materialize_grads(False)
            ctx.arguments = len(inputs)

            def save(*tensors):
                ctx.save_for_backward(*tensors)
                ctx.save_for_forward(*tensors)

            self._setup(ctx, inputs, output, (True,) * len(inputs), save)

        def vmap(info, in_dims, *args):
            from ._vmap import RULES

            return RULES[self.name](self, info, in_dims, *args)

        def jvp(ctx, *tangents):
            return self._jvp(ctx, *tangents[: self.tensors])

        return self._make_function(
            "Transformed", forward=self.run, setup_context=setup_context, vmap=vmap, jvp=jvp
        )

    def _make_function(self, suffix, **methods):
        name = "Fastconv" + "".join(word.title() for word in self.name.split("_")) + suffix
        methods = {key: staticmethod(method) for key, method in methods.items()}
        return type(name, (torch.autograd.Function,), {"backward": staticmethod(self.backward), **methods})


def _mask(grad, output):
    """relu's derivative, seen from its output. NaN passes, as in torch."""
    return grad if output is None else grad.masked_fill(output <= 0, 0)


def _saved(ctx):
    """The saved tensors, the forward's output last; as a mask it is a constant, whatever made it."""
    *tensors, output = ctx.saved_tensors
    return *tensors, output if output is None or not torch.is_grad_enabled() else output.detach()


# --- convolution -------------------------------------------------------------------------------------------
# conf: stride, padding, dilation, groups, activation, algorithm, accuracy


def _linear(conf):
    return (*conf[:4], "none", *conf[5:])


def _output_if_masked(output, conf):
    return None if conf[4] == "none" else output


def _setup_conv2d(ctx, args, y, needs, save):
    x, w = args[:2]
    ctx.conf = args[4:]
    ctx.x_size, ctx.w_size, ctx.y_size = x.shape, w.shape, y.shape
    save(x if needs[1] else None, w if needs[0] else None, _output_if_masked(y, ctx.conf))


def _backward_conv2d(ctx, gy):
    x, w, y = _saved(ctx)
    needs = ctx.needs_input_grad
    conf = ctx.conf
    gx = gw = gb = None
    if needs[3]:  # the residual's gradient is the masked gy: then the other passes may as well read that
        gy, y, conf = _mask(gy, y), None, _linear(conf)
    if needs[0]:
        gx = grad_input(gy, w, y, ctx.x_size, *conf)
    if needs[1]:
        gw, gb = grad_weight(x, gy, y, ctx.w_size, needs[2], *conf)
    elif needs[2]:
        gb = _grad_bias(_mask(gy, y), ctx.w_size)
    return gx, gw, gb if needs[2] else None, gy if needs[3] else None


def _grad_bias(gy, w_size):
    return gy.sum((0, 2, 3)) if gy.shape[1] == w_size[0] else gy.new_zeros(w_size[0])  # no channels: no output


def _per_channel(bias, shape):
    return bias.view(1, -1, 1, 1).expand(shape) if bias.shape[0] == shape[1] else bias.new_zeros(shape)


def _jvp_conv2d(ctx, dx, dw, db, dres):
    x, w, y = _saved(ctx)
    conf = _linear(ctx.conf)
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
    return _mask(t, y)


def _setup_grad_input(ctx, args, gx, needs, save):
    gy, w, y = args[:3]
    ctx.conf = args[4:]
    ctx.x_size, ctx.w_size = args[3], w.shape
    save(gy if needs[1] else None, w if needs[0] else None, y)


def _backward_grad_input(ctx, ggx):
    gy, w, y = _saved(ctx)
    ggy = gw = None
    if ctx.needs_input_grad[0]:
        ggy = _mask(conv2d(ggx, w, None, None, *_linear(ctx.conf)), y)
    if ctx.needs_input_grad[1]:
        gw, _ = grad_weight(ggx, gy, y, ctx.w_size, False, *ctx.conf)
    return ggy, gw


def _jvp_grad_input(ctx, dgy, dw, dy):
    gy, w, y = _saved(ctx)
    terms = []
    if dgy is not None:
        terms.append(grad_input(dgy, w, y, ctx.x_size, *ctx.conf))
    if dw is not None:
        terms.append(grad_input(gy, dw, y, ctx.x_size, *ctx.conf))
    return sum(terms[1:], terms[0]) if terms else None


def _setup_grad_weight(ctx, args, output, needs, save):
    x, gy, y = args[:3]
    ctx.bias = args[4]
    ctx.conf = args[5:]
    ctx.x_size, ctx.gy_size, ctx.w_size = x.shape, gy.shape, args[3]
    save(x if needs[1] else None, gy if needs[0] else None, y)


def _backward_grad_weight(ctx, ggw, ggb):
    x, gy, y = _saved(ctx)
    if not ctx.bias:
        ggb = None
    gx = ggy = None
    if ctx.needs_input_grad[0] and ggw is not None:
        gx = grad_input(gy, ggw, y, ctx.x_size, *ctx.conf)
    if ctx.needs_input_grad[1]:
        if ggw is not None:
            ggy = _mask(conv2d(x, ggw, ggb, None, *_linear(ctx.conf)), y)
        elif ggb is not None:
            ggy = _mask(_per_channel(ggb, ctx.gy_size), y)
    return gx, ggy


def _jvp_grad_weight(ctx, dx, dgy, dy):
    x, gy, y = _saved(ctx)
    tw = tb = None
    if dgy is not None:
        tw, tb = grad_weight(x, dgy, y, ctx.w_size, ctx.bias, *ctx.conf)
    if dx is not None:
        t, empty = grad_weight(dx, gy, y, ctx.w_size, False, *ctx.conf)
        tw = t if tw is None else tw + t
        if tb is None:
            tb = gy.new_zeros(ctx.w_size[0]) if ctx.bias else empty
    return tw, tb


conv2d = Differentiable("conv2d", 4, _setup_conv2d, _backward_conv2d, _jvp_conv2d)
grad_input = Differentiable("conv2d_grad_input", 3, _setup_grad_input, _backward_grad_input, _jvp_grad_input)
grad_weight = Differentiable("conv2d_grad_weight", 3, _setup_grad_weight, _backward_grad_weight, _jvp_grad_weight)


# --- pooling -----------------------------------------------------------------------------------------------


def _setup_max_pool(ctx, args, output, needs, save):
    ctx.mark_non_differentiable(output[1])
    ctx.x_size, ctx.conf = args[0].shape, args[1:]
    save(output[1])


def _backward_max_pool(ctx, gy, _):
    (offsets,) = ctx.saved_tensors
    return (max_pool_backward(gy, offsets, ctx.x_size, *ctx.conf),)


def _jvp_max_pool(ctx, dx):
    (offsets,) = ctx.saved_tensors
    return max_pool_gather(dx, offsets, *ctx.conf), None


def _setup_max_pool_values(ctx, args, output, needs, save):
    ctx.conf = args[1:]
    save(args[0])


def _backward_max_pool_values(ctx, gy):
    (x,) = ctx.saved_tensors
    _, offsets = max_pool.run(x.detach(), *ctx.conf)
    return (max_pool_backward(gy, offsets, x.shape, *ctx.conf),)


def _jvp_max_pool_values(ctx, dx):
    (x,) = ctx.saved_tensors
    _, offsets = max_pool(x, *ctx.conf)
    return max_pool_gather(dx, offsets, *ctx.conf)


def _setup_max_pool_backward(ctx, args, output, needs, save):
    ctx.x_size, ctx.conf = args[2], args[3:]
    save(args[1])


def _backward_max_pool_backward(ctx, ggx):
    (offsets,) = ctx.saved_tensors
    return (max_pool_gather(ggx, offsets, *ctx.conf),)


def _jvp_max_pool_backward(ctx, dgy, _):
    (offsets,) = ctx.saved_tensors
    return max_pool_backward(dgy, offsets, ctx.x_size, *ctx.conf)


def _setup_max_pool_gather(ctx, args, output, needs, save):
    ctx.x_size, ctx.conf = args[0].shape, args[2:]
    save(args[1])


max_pool = Differentiable("max_pool2d", 1, _setup_max_pool, _backward_max_pool, _jvp_max_pool)
max_pool_values = Differentiable(
    "max_pool2d_values", 1, _setup_max_pool_values, _backward_max_pool_values, _jvp_max_pool_values
)
max_pool_backward = Differentiable(
    "max_pool2d_backward", 2, _setup_max_pool_backward, _backward_max_pool_backward, _jvp_max_pool_backward
)
# Gathering is the transpose of max_pool2d_backward and linear: each one's backward is the other's jvp.
max_pool_gather = Differentiable(
    "max_pool2d_gather",
    2,
    _setup_max_pool_gather,
    lambda ctx, g: (_jvp_max_pool_backward(ctx, g, None),),
    lambda ctx, dx, _: _backward_max_pool_backward(ctx, dx)[0],
)


def max_pool_indices(*args):  # integers of integers: nothing to differentiate
    output = ops.eager_max_pool2d_indices(*args)
    return ops.max_pool2d_indices(*args) if output is None else output


def _setup_avg_pool(ctx, args, output, needs, save):
    ctx.x_size, ctx.conf = args[0].shape, args[1:]


def _setup_avg_pool_backward(ctx, args, output, needs, save):
    ctx.x_size, ctx.conf = args[1], args[2:]


def _pool_average(ctx, x):
    return avg_pool(x, *ctx.conf)


def _spread_average(ctx, gy):
    return avg_pool_backward(gy, ctx.x_size, *ctx.conf)


avg_pool = Differentiable(
    "avg_pool2d", 1, _setup_avg_pool, lambda ctx, gy: (_spread_average(ctx, gy),), _pool_average
)
avg_pool_backward = Differentiable(
    "avg_pool2d_backward", 1, _setup_avg_pool_backward, lambda ctx, ggx: (_pool_average(ctx, ggx),), _spread_average
)

FORMULAS = {
    d.name: d
    for d in (
        conv2d,
        grad_input,
        grad_weight,
        max_pool,
        max_pool_values,
        max_pool_backward,
        max_pool_gather,
        avg_pool,
        avg_pool_backward,
    )
}
