"""torch.func: vmap, per-sample gradients, forward and reverse transforms, nested; compared with torch's functions."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import fastconv
import fastconv.functional as FF

OPS = torch.ops.fastconv


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=dtype)


def assert_same(function, reference, *args):
    """Both return the same tensors, up to rounding."""
    ours, theirs = (torch.utils._pytree.tree_leaves(f(*args)) for f in (function, reference))
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b)


KWARGS = dict(stride=(2, 1), padding=(1, 1), dilation=(1, 2))


def ours(x, w, b, groups=2):
    return FF.conv2d_relu(x, w, b, groups=groups, **KWARGS)


def theirs(x, w, b, groups=2):
    return F.relu(F.conv2d(x, w, b, groups=groups, **KWARGS))


def raw(x, w, b, groups=2):
    return OPS.conv2d(x, w, b, None, [2, 1], [1, 1, 1, 1], [1, 2], groups, "relu", "auto", "torch")


BATCHES = [(0, None, None), (None, 0, None), (None, None, 0), (0, 0, None), (0, 0, 0), (1, 2, 1), (None, 0, 0)]


@pytest.mark.parametrize("function", [ours, raw], ids=["functional", "operator"])
@pytest.mark.parametrize("in_dims", BATCHES, ids=str)
@pytest.mark.parametrize("groups", [1, 2])
def test_vmap_of_convolution(in_dims, function, groups):
    sizes = (2, 2 * groups, 7, 6), (6, 2, 3, 2), (6,)
    args = [randn(*size) if dim is None else randn(5, *size).movedim(0, dim) for size, dim in zip(sizes, in_dims)]
    batched, reference = (vmap(partial(f, groups=groups), in_dims) for f in (function, theirs))
    assert_same(batched, reference, *args)


@pytest.mark.parametrize("batched", range(4))
def test_vmap_with_a_residual(batched):
    args = [randn(2, 4, 5, 5), randn(6, 4, 3, 3), randn(6), randn(2, 6, 3, 3)]
    args[batched] = randn(3, *args[batched].shape)
    in_dims = tuple(0 if i == batched else None for i in range(4))

    def function(x, w, b, r):
        return FF.conv2d(x, w, b, residual=r, activation="relu")

    def reference(x, w, b, r):
        return F.relu(F.conv2d(x, w, b) + r)

    assert_same(vmap(function, in_dims), vmap(reference, in_dims), *args)


def test_vmap_of_vmap():
    x, w, b = randn(2, 3, 4, 7, 6), randn(3, 6, 2, 3, 2), randn(6)

    def twice(f):
        return vmap(vmap(f, (0, 0, None)), (0, None, None))

    assert_same(twice(ours), twice(theirs), x, w, b)


def test_per_sample_gradients():
    x, w, b = randn(5, 4, 7, 6), randn(6, 2, 3, 2), randn(6)

    def gradients(f):
        return vmap(grad(lambda w, b, x: f(x, w, b).square().sum(), (0, 1)), (None, None, 0))

    assert_same(gradients(ours), gradients(theirs), w, b, x)


TRANSFORMS = {
    "grad": lambda f: grad(lambda *a: f(*a).square().sum(), (0, 1, 2)),
    "grad of grad": lambda f: grad(
        lambda x, w, b: sum(g.square().sum() for g in grad(lambda *a: f(*a).square().sum(), (0, 1, 2))(x, w, b)),
        (0, 1, 2),
    ),
    "jvp": lambda f: lambda *a: jvp(f, a, tuple(3 * t for t in a)),
    "jvp of one": lambda f: lambda x, w, b: [
        jvp(lambda x: f(x, w, b), (x,), (2 * x,)),
        jvp(lambda w: f(x, w, b), (w,), (2 * w,)),
        jvp(lambda b: f(x, w, b), (b,), (2 * b,)),
    ],
    "vjp": lambda f: lambda *a: (lambda y, pull: pull(y))(*vjp(f, *a)),
    "jacrev": lambda f: jacrev(f, (1, 2)),
    "jacfwd": lambda f: jacfwd(f, (1, 2)),
    "hessian": lambda f: hessian(lambda *a: f(*a).square().sum(), (1, 2)),
    "reverse over forward": lambda f: jacrev(jacfwd(lambda *a: f(*a).square().sum(), 1), 1),
    "forward over forward": lambda f: lambda x, w, b: jacfwd(jacfwd(lambda t: f(t * x, t * w, t * b).sum()))(b[0]),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms_of_convolution(transform):
    x, w, b = randn(2, 4, 5, 4), randn(4, 2, 3, 2), randn(4)
    assert_same(TRANSFORMS[transform](ours), TRANSFORMS[transform](theirs), x, w, b)


POOL_TRANSFORMS = {
    "vmap": vmap,
    "vmap of grad": lambda f: vmap(grad(lambda x: f(x).square().sum())),
    "jacfwd": lambda f: lambda x: jacfwd(f)(x[0]),
    "hessian": lambda f: lambda x: hessian(lambda x: f(x).square().sum())(x[0]),
    "jvp": lambda f: lambda x: jvp(f, (x[0],), (x[1],)),
}


@pytest.mark.parametrize("transform", POOL_TRANSFORMS)
@pytest.mark.parametrize("pool", ["max_pool2d", "avg_pool2d"])
def test_transforms_of_pools(pool, transform):
    x = randn(3, 2, 2, 5, 4)
    pools = (lambda x, f=f: getattr(f, pool)(x, 3, 2, 1) for f in (FF, F))
    assert_same(*map(POOL_TRANSFORMS[transform], pools), x)


def test_vmap_of_indices():
    x = randn(3, 2, 2, 6, 6)
    both = (lambda x, f=f: f.max_pool2d(x, 2, return_indices=True) for f in (FF, F))
    assert_same(*map(vmap, both), x)


def test_functional_call_per_sample():
    fnn = fastconv.nn
    layers = fnn.Conv2d(3, 6, 3, padding=1), torch.nn.ReLU(), fnn.MaxPool2d(2), fnn.Conv2d(6, 4, 3), fnn.AvgPool2d(2)
    model, x = torch.nn.Sequential(*layers).double(), randn(4, 3, 13, 12)
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters, x):
        return functional_call(model, parameters, (x,)).square().sum()

    each = vmap(grad(loss), (None, 0))(parameters, x)
    for name, gradient in grad(loss)(parameters, x).items():
        torch.testing.assert_close(each[name].sum(0), gradient)
