"""Adaptive pooling: values, indices, derivatives, transforms, graphs, modules, against torch."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck
from torch.func import hessian, jacfwd, jvp, vmap

import fastconv
import fastconv.functional as FF
from fastconv import nn as fnn
from test_functional import assert_as_accurate, views
from values import randn

OPS = torch.ops.fastconv
SIZES = [1, (1, 1), 5, (2, 3), (11, 14), (7, 5), (13, 1), (20, 17), (None, 4), (3, None)]


pytestmark = pytest.mark.usefixtures("one_thread")


def same(ours, theirs):
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
def test_values(size, dtype, last):
    x = randn(2, 5, 11, 14, dtype=dtype).round(decimals=1)  # with ties
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    assert_as_accurate(FF.adaptive_avg_pool2d(x, size), F.adaptive_avg_pool2d, x, size)
    y, indices = F.adaptive_max_pool2d(x, size, return_indices=True)
    same(FF.adaptive_max_pool2d(x, size), y)
    ours, places = FF.adaptive_max_pool2d(x, size, return_indices=True)
    same(ours, y), same(places, indices)
    same(FF.adaptive_max_pool2d(x[1], size), y[1])
    for mine in (ours, places, FF.adaptive_avg_pool2d(x, size)):
        assert mine.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


@pytest.mark.parametrize("size", [(0, 3), 0, (2, 3)], ids=str)
@pytest.mark.parametrize("batch", [0, 2])
def test_nothing_in_or_out(size, batch):
    x = torch.ones(batch, 3, 5, 4, requires_grad=True)
    for name in ("adaptive_avg_pool2d", "adaptive_max_pool2d"):
        ours, theirs = getattr(FF, name), getattr(F, name)
        y = ours(x, size)
        same(y, theirs(x, size))
        (gradient,) = torch.autograd.grad(y.sum(), x)  # torch refuses where there is no window
        if y.numel():
            same(gradient, torch.autograd.grad(theirs(x, size).sum(), x)[0])
        else:
            same(gradient, torch.zeros_like(x))


def test_offsets_of_16_and_32_bits():
    for h, w in ((61, 53), (401, 331)):
        x = randn(1, 2, h, w)
        y, offsets = OPS.adaptive_max_pool2d(x, [2, 2] if h < 100 else [1, 1])
        assert offsets.element_size() == (2 if h < 100 else 4)
        for ours, theirs in zip(
            FF.adaptive_max_pool2d(x, y.shape[2:], True), F.adaptive_max_pool2d(x, y.shape[2:], return_indices=True)
        ):
            same(ours, theirs)


def test_nan_wins():
    x = randn(2, 3, 9, 8)
    x[randn(2, 3, 9, 8, seed=1) > 1] = float("nan")
    for ours, theirs in zip(FF.adaptive_max_pool2d(x, 4, True), F.adaptive_max_pool2d(x, 4, return_indices=True)):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


def test_views_are_read_as_they_are():
    x = randn(3, 4, 7, 9)
    for name, view in views(x):
        for f in ("adaptive_avg_pool2d", "adaptive_max_pool2d"):
            ours, theirs = getattr(FF, f)(view, (3, 4)).double(), getattr(F, f)(x, (3, 4))
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=lambda text: f"{name}: {text}")


@pytest.mark.parametrize("size", [(2, 3), (3, 4), 1, (6, 5)], ids=str)
@pytest.mark.parametrize("pool", ["adaptive_avg_pool2d", "adaptive_max_pool2d"])
def test_derivatives(pool, size):
    def function(x):
        return getattr(FF, pool)(x, size)

    for x in (randn(1, 2, 5, 4).requires_grad_(), randn(2, 5, 4).requires_grad_()):
        checks = dict(check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
        assert gradcheck(function, x, **checks)
        assert gradgradcheck(function, x)


def test_operators_have_derivatives():
    x, size = randn(1, 2, 5, 4).requires_grad_(), [3, 3]
    y, offsets = OPS.adaptive_max_pool2d(x, size)
    gy = randn(*y.shape).requires_grad_()
    for function, arg in (
        (lambda x: OPS.adaptive_max_pool2d(x, size)[0], x),
        (lambda x: OPS.adaptive_max_pool2d_values(x, size), x),
        (lambda gy: OPS.adaptive_max_pool2d_backward(gy, offsets, x.shape, size), gy),
        (lambda x: OPS.adaptive_max_pool2d_gather(x, offsets, size), x),
        (lambda x: OPS.adaptive_avg_pool2d(x, size), x),
        (lambda gy: OPS.adaptive_avg_pool2d_backward(gy, x.shape, size), gy),
    ):
        assert gradcheck(function, arg)
        assert gradgradcheck(function, arg)


TRANSFORMS = {
    "vmap": vmap,
    "jacfwd": lambda f: lambda x: jacfwd(f)(x[0]),
    "hessian": lambda f: lambda x: hessian(lambda x: f(x).square().sum())(x[0]),
    "jvp": lambda f: lambda x: jvp(f, (x[0],), (x[1],)),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("pool", ["adaptive_avg_pool2d", "adaptive_max_pool2d"])
def test_transforms(pool, transform):
    x = randn(3, 2, 2, 5, 4)
    results = (TRANSFORMS[transform](lambda x, f=f: getattr(f, pool)(x, (3, 2)))(x) for f in (FF, F))
    for ours, theirs in zip(*map(torch.utils._pytree.tree_leaves, results), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_vmap_of_indices():
    x = randn(3, 2, 2, 6, 5)
    a, b = (vmap(lambda x, f=f: f.adaptive_max_pool2d(x, 4, return_indices=True))(x) for f in (FF, F))
    for ours, theirs in zip(a, b):
        same(ours, theirs)


@pytest.mark.parametrize("dynamic", [False, True])
def test_one_graph(dynamic):
    def function(x):
        y, indices = FF.adaptive_max_pool2d(x, (3, None), return_indices=True)
        return FF.adaptive_avg_pool2d(y, 2) + indices.sum(), FF.adaptive_max_pool2d(x, 2)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for size in ((2, 4, 5, 6), (3, 4, 8, 7)):
        x = randn(*size).requires_grad_()
        ours, theirs = compiled(x), function(x)
        for a, b in zip(ours, theirs):
            torch.testing.assert_close(a, b)
        gradients = (torch.autograd.grad(sum(y.square().sum() for y in ys), x)[0] for ys in (ours, theirs))
        torch.testing.assert_close(*gradients)
    torch._dynamo.reset()


def test_meta():
    x = randn(2, 4, 5, 6).contiguous(memory_format=torch.channels_last)
    for size in (1, (2, 3), (3, 5), 0):
        for real, meta in zip(OPS.adaptive_max_pool2d(x, [size] * 2 if isinstance(size, int) else size),
                              OPS.adaptive_max_pool2d(x.to("meta"), [size] * 2 if isinstance(size, int) else size)):
            assert (real.shape, real.stride(), real.dtype) == (meta.shape, meta.stride(), meta.dtype)
        real, meta = FF.adaptive_avg_pool2d(x, size), FF.adaptive_avg_pool2d(x.to("meta"), size)
        assert (real.shape, real.stride(), real.dtype) == (meta.shape, meta.stride(), meta.dtype)


def test_little_is_saved_and_calls_are_short():
    x = randn(2, 3, 8, 9, dtype=torch.float32)
    for name in ("adaptive_avg_pool2d", "adaptive_max_pool2d"):
        for size in (1, (2, 3), [3, 1]):
            assert torch.equal(getattr(fastconv.ops, f"functional_{name}")(x, size), getattr(FF, name)(x, size))
        assert getattr(fastconv.ops, f"functional_{name}")(x, (None, 1)) is None
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
        FF.adaptive_avg_pool2d(x.requires_grad_(), 3)
        assert kept == []
        y = FF.adaptive_max_pool2d(x, 3)
    assert kept == [y.numel()]  # one byte an element


def test_explain():
    x = randn(1, 3, 7, 8, dtype=torch.float32)
    for function, text in (
        (lambda: FF.adaptive_avg_pool2d(x, (3, 2)), "avgpool n1c3h7w8 r3s4 st1 pd0 dl1 f32 nchw fwd adaptive p3q2"),
        (lambda: FF.adaptive_max_pool2d(x, 1), "maxpool n1c3h7w8 r7s8 st7x8 pd0 dl1 f32 nchw fwd"),
        (
            lambda: FF.adaptive_max_pool2d(x, (3, 2), True),
            "maxpool n1c3h7w8 r3s4 st1 pd0 dl1 f32 nchw fwd off8 adaptive p3q2",
        ),
    ):
        explanation = fastconv.explain(function)
        assert explanation.rows[0]["problem"] == text and None not in explanation.chosen


@pytest.mark.parametrize("size", [1, (2, None), (5, 3)], ids=str)
def test_modules_and_convert(size):
    x = randn(2, 3, 8, 7, dtype=torch.float32)
    model = torch.nn.Sequential(torch.nn.AdaptiveMaxPool2d((6, 5)), torch.nn.AdaptiveAvgPool2d(size))
    converted = fastconv.convert(model)
    assert [type(m) for m in converted] == [fnn.AdaptiveMaxPool2d, fnn.AdaptiveAvgPool2d]
    torch.testing.assert_close(converted(x), model(x))
    assert repr(fastconv.unconvert(converted)) == repr(model)
    indices = fnn.AdaptiveMaxPool2d(size, return_indices=True)(x)[1]
    same(indices, torch.nn.AdaptiveMaxPool2d(size, return_indices=True)(x)[1])
