"""Derivatives of the pools, see autograd.py. Plain and adaptive pools differ in their arguments only: `conf`."""

import torch

from . import ops
from ._differentiable import Differentiable, transforming


class MaxPools:
    """The operators of one kind of max-pooling: `pool`, `backward`, `gather` (the transpose of backward), `indices`.

    name: "max_pool2d" or "adaptive_max_pool2d".
    """

    def __init__(self, name):
        self._indices = f"{name}_indices"
        self.pool = Differentiable(name, 1, self._setup, self._backward, self._jvp)
        self.values = Differentiable(
            f"{name}_values", 1, self._setup_values, self._backward_values, self._jvp_values
        )
        self.backward = Differentiable(
            f"{name}_backward", 2, self._setup_backward, self._backward_backward, self._jvp_backward
        )
        # Gathering is the transpose of backward and linear: each one's backward is the other's jvp.
        self.gather = Differentiable(
            f"{name}_gather",
            2,
            self._setup_gather,
            lambda ctx, g: (self._jvp_backward(ctx, g, None),),
            lambda ctx, dx, _: self._backward_backward(ctx, dx)[0],
        )

    def indices(self, *args):  # integers of integers: nothing to differentiate
        output = getattr(ops, f"eager_{self._indices}")(*args)
        return getattr(ops, self._indices)(*args) if output is None else output

    def _setup(self, ctx, args, output, needs, save):
        ctx.mark_non_differentiable(output[1])
        ctx.x_size, ctx.conf = args[0].shape, args[1:]
        save(output[1])

    def _backward(self, ctx, gy, _):
        (offsets,) = ctx.saved_tensors
        return (self.backward(gy, offsets, ctx.x_size, *ctx.conf),)

    def _jvp(self, ctx, dx):
        (offsets,) = ctx.saved_tensors
        return self.gather(dx, offsets, *ctx.conf), None

    def _setup_values(self, ctx, args, output, needs, save):
        ctx.conf = args[1:]
        save(args[0])

    def _backward_values(self, ctx, gy):
        (x,) = ctx.saved_tensors
        _, offsets = self.pool.run(x.detach(), *ctx.conf)
        return (self.backward(gy, offsets, x.shape, *ctx.conf),)

    def _jvp_values(self, ctx, dx):
        (x,) = ctx.saved_tensors
        _, offsets = self.pool(x, *ctx.conf)
        return self.gather(dx, offsets, *ctx.conf)

    def _setup_backward(self, ctx, args, output, needs, save):
        ctx.x_size, ctx.conf = args[2], args[3:]
        save(args[1])

    def _backward_backward(self, ctx, ggx):
        (offsets,) = ctx.saved_tensors
        return (self.gather(ggx, offsets, *ctx.conf),)

    def _jvp_backward(self, ctx, dgy, _):
        (offsets,) = ctx.saved_tensors
        return self.backward(dgy, offsets, ctx.x_size, *ctx.conf)

    def _setup_gather(self, ctx, args, output, needs, save):
        ctx.x_size, ctx.conf = args[0].shape, args[2:]
        save(args[1])


class AvgPools:
    """The operators of one kind of average pooling: `pool` and its transpose `backward`.

    name: "avg_pool2d" or "adaptive_avg_pool2d".
    """

    def __init__(self, name):
        self.pool = Differentiable(
            name, 1, self._setup, lambda ctx, gy: (self._spread(ctx, gy),), self._average
        )
        self.backward = Differentiable(
            f"{name}_backward", 1, self._setup_backward, lambda ctx, ggx: (self._average(ctx, ggx),), self._spread
        )

    def _setup(self, ctx, args, output, needs, save):
        ctx.x_size, ctx.conf = args[0].shape, args[1:]

    def _setup_backward(self, ctx, args, output, needs, save):
        ctx.x_size, ctx.conf = args[1], args[2:]

    def _average(self, ctx, x):
        return self.pool(x, *ctx.conf)

    def _spread(self, ctx, gy):
        return self.backward(gy, ctx.x_size, *ctx.conf)


max_pool = MaxPools("max_pool2d")
adaptive_max_pool = MaxPools("adaptive_max_pool2d")
avg_pool = AvgPools("avg_pool2d")
adaptive_avg_pool = AvgPools("adaptive_avg_pool2d")


# --- LP pooling --------------------------------------------------------------------------------------------
# y = (size * mean(x^p))^(1/p), so dy = size * y^(1-p) * mean(x^(p-1) * dx), the means taken over the window's part
# inside the input. conf: norm_type (p), kernel_size, stride, ceil_mode. A window whose y is 0 has no derivative unless
# p is 1: it sends 0, where torch sends NaN.


def _mean_conf(conf):
    _, kernel_size, stride, ceil_mode = conf
    return kernel_size, stride, [0, 0], ceil_mode, True, None


def _scale(y, conf, derivative=False):
    """size * y^(1-p), or its derivative by y; 0 where y is 0."""
    p, size = conf[0], conf[1][0] * conf[1][1]
    if p == 1:
        return torch.zeros_like(y) if derivative else torch.full_like(y, size)
    factor, power = (size * (1 - p), -p) if derivative else (size, 1 - p)
    zero = y == 0
    return (factor * y.masked_fill(zero, 1).pow(power)).masked_fill(zero, 0)


def _power(x, conf, derivative=False):
    """x^(p-1), or its derivative."""
    p = conf[0]
    if derivative:
        return torch.zeros_like(x) if p == 1 else (p - 1) * x.pow(p - 2)
    return torch.ones_like(x) if p == 1 else x.pow(p - 1)


def _setup_lp_pool(ctx, args, y, needs, save):
    ctx.conf = args[1:]
    save(args[0], y)


def _backward_lp_pool(ctx, gy):
    x, y = ctx.saved_tensors
    if not (torch.is_grad_enabled() or transforming()):
        return (_lp_pool_backward.run(gy, x, y, *ctx.conf),)
    return (_power(x, ctx.conf) * avg_pool.backward(gy * _scale(y, ctx.conf), x.shape, *_mean_conf(ctx.conf)),)


def _jvp_lp_pool(ctx, dx):
    x, y = ctx.saved_tensors
    return _scale(y, ctx.conf) * avg_pool.pool(_power(x, ctx.conf) * dx, *_mean_conf(ctx.conf))


def _setup_lp_pool_backward(ctx, args, gx, needs, save):
    ctx.conf = args[3:]
    save(*args[:3])


def _backward_lp_pool_backward(ctx, ggx):
    gy, x, y = ctx.saved_tensors
    conf, mean_conf = ctx.conf, _mean_conf(ctx.conf)
    mean = avg_pool.pool(ggx * _power(x, conf), *mean_conf)
    spread = avg_pool.backward(gy * _scale(y, conf), x.shape, *mean_conf)
    return mean * _scale(y, conf), ggx * _power(x, conf, True) * spread, mean * gy * _scale(y, conf, True)


def _jvp_lp_pool_backward(ctx, dgy, dx, dy):
    gy, x, y = ctx.saved_tensors
    conf, mean_conf = ctx.conf, _mean_conf(ctx.conf)
    terms = []
    if dgy is not None:
        terms.append(_power(x, conf) * avg_pool.backward(dgy * _scale(y, conf), x.shape, *mean_conf))
    if dx is not None:
        spread = avg_pool.backward(gy * _scale(y, conf), x.shape, *mean_conf)
        terms.append(_power(x, conf, True) * dx * spread)
    if dy is not None:
        spread = avg_pool.backward(gy * _scale(y, conf, True) * dy, x.shape, *mean_conf)
        terms.append(_power(x, conf) * spread)
    return sum(terms[1:], terms[0])


lp_pool = Differentiable("lp_pool2d", 1, _setup_lp_pool, _backward_lp_pool, _jvp_lp_pool)
_lp_pool_backward = Differentiable(
    "lp_pool2d_backward", 3, _setup_lp_pool_backward, _backward_lp_pool_backward, _jvp_lp_pool_backward
)

POOLS = {
    d.name: d
    for d in (
        *(getattr(p, n) for p in (max_pool, adaptive_max_pool) for n in ("pool", "values", "backward", "gather")),
        *(getattr(p, n) for p in (avg_pool, adaptive_avg_pool) for n in ("pool", "backward")),
        lp_pool,
        _lp_pool_backward,
    )
}
