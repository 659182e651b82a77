"""LP pooling: values, derivatives of any order, transforms, graphs, the module, against torch."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck
from torch.func import hessian, jacfwd, jvp, vmap

import fastconv
import fastconv.functional as FF
from fastconv import nn as fnn
from test_functional import assert_as_accurate

OPS = torch.ops.fastconv
NORMS = [2, 1, 3, 1.5, 0.5, -1, 4.0]
CASES = {
    "2": dict(kernel_size=2),
    "overlapping": dict(kernel_size=3, stride=2),
    "window (3, 2)": dict(kernel_size=(3, 2), stride=(1, 3)),
    "ceil": dict(kernel_size=(3, 2), stride=(2, 3), ceil_mode=True),
    "lists": dict(kernel_size=[2, 3], stride=[]),
    "stride of one": dict(kernel_size=2, stride=[1]),
}


pytestmark = pytest.mark.usefixtures("one_thread")


def positive(*shape, seed=0, dtype=torch.float64):
    """Well away from 0: powers of other numbers are NaN for odd and fractional norms."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return (torch.rand(*shape, generator=generator, dtype=torch.float64) + 0.5).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("case", CASES)
def test_values(case, norm, dtype):
    kwargs = CASES[case]
    x = positive(2, 3, 8, 9, dtype=dtype)
    assert_as_accurate(FF.lp_pool2d(x, norm, **kwargs), F.lp_pool2d, x, norm, **kwargs)
    last = x.contiguous(memory_format=torch.channels_last)
    ours = FF.lp_pool2d(last, norm, **kwargs)
    assert_as_accurate(ours, F.lp_pool2d, last, norm, **kwargs)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    assert_as_accurate(FF.lp_pool2d(x[0], norm, **kwargs), F.lp_pool2d, x[0], norm, **kwargs)


@pytest.mark.parametrize("norm", [2, 1, 3, 4, float("inf"), -float("inf")])
def test_negative_numbers(norm):
    x = positive(2, 3, 8, 9) - 1
    ours, theirs = FF.lp_pool2d(x, norm, 2), F.lp_pool2d(x, norm, 2)
    torch.testing.assert_close(ours, theirs, equal_nan=True)


def test_norm_that_is_no_norm():
    x = positive(1, 1, 4, 4)
    with pytest.raises(ValueError, match="^fastconv: norm_type must be a finite number other than 0"):
        FF.lp_pool2d(x, float("nan"), 2)
    with pytest.raises(NotImplementedError, match="\"lp_pool2d\" not implemented for 'Long'"):
        FF.lp_pool2d(torch.ones(1, 1, 4, 4, dtype=torch.int64), 2, 2)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("case", ["overlapping", "ceil"])
def test_derivatives(case, norm):
    def function(x):
        return FF.lp_pool2d(x, norm, **CASES[case])

    x = positive(1, 2, 4, 5).requires_grad_()
    checks = dict(check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    assert gradcheck(function, x, **checks)
    assert gradgradcheck(function, x)


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("norm", [2, 1, 1.5])
def test_three_orders(norm, last):
    x = positive(1, 2, 4, 5)
    x = (x.contiguous(memory_format=torch.channels_last) if last else x).requires_grad_()

    def orders(f):
        y = f(x, norm, 3, 1).pow(3).sum()
        for _ in range(3):
            (g,) = torch.autograd.grad(y, x, create_graph=True)
            yield g
            y = g.pow(3).sum()

    for ours, theirs in zip(orders(FF.lp_pool2d), orders(F.lp_pool2d)):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("mixed", [False, True])
def test_first_order_by_the_kernel(mixed):
    x = positive(2, 3, 8, 9, dtype=torch.float32).requires_grad_()
    y, reference = FF.lp_pool2d(x, 3, 2), F.lp_pool2d(x, 3, 2)
    gy = positive(*y.shape, seed=1, dtype=torch.float32)
    gy = gy.contiguous(memory_format=torch.channels_last) if mixed else gy
    torch.testing.assert_close(*(torch.autograd.grad(out, x, gy)[0] for out in (y, reference)))


def test_a_window_of_zeros_sends_no_gradient():
    x = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    x[..., 2:] = 2
    x.requires_grad_()
    y = FF.lp_pool2d(x, 2, 2)
    (plain,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    (kept,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    expected = torch.where(x > 0, 0.5, 0.0).double()
    torch.testing.assert_close(plain, expected)
    torch.testing.assert_close(kept.detach(), expected)
    (second,) = torch.autograd.grad(kept.sum(), x)
    assert not second[..., :2].any() and not second.isnan().any()


@pytest.mark.parametrize("norm", [2.0, 1.0, 1.5])
def test_operators_have_derivatives(norm):
    x = positive(1, 2, 4, 5).requires_grad_()
    conf = [2, 3], [1, 2], True
    y = positive(*OPS.lp_pool2d(x, norm, *conf).shape, seed=1).requires_grad_()
    gy = positive(*y.shape, seed=2).requires_grad_()

    def backward(gy, x, y):
        return OPS.lp_pool2d_backward(gy, x, y, norm, *conf)

    def forward(x):
        return OPS.lp_pool2d(x, norm, *conf)

    assert gradcheck(forward, x) and gradgradcheck(forward, x)
    assert gradcheck(backward, (gy, x, y)) and gradgradcheck(backward, (gy, x, y))
    ours = fastconv.autograd.FORMULAS["lp_pool2d_backward"]
    function = lambda gy, x, y: ours(gy, x, y, norm, *conf)  # noqa: E731
    assert gradcheck(function, (gy, x, y), check_forward_ad=True, check_backward_ad=False)


TRANSFORMS = {
    "vmap": vmap,
    "jacfwd": lambda f: lambda x: jacfwd(f)(x[0]),
    "hessian": lambda f: lambda x: hessian(lambda x: f(x).square().sum())(x[0]),
    "forward over forward": lambda f: lambda x: jacfwd(jacfwd(lambda x: f(x).square().sum()))(x[0]),
    "jvp": lambda f: lambda x: jvp(f, (x[0],), (x[1],)),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms(transform):
    x = positive(3, 2, 2, 4, 5)
    results = (TRANSFORMS[transform](lambda x, f=f: f.lp_pool2d(x, 3, 2, 1))(x) for f in (FF, F))
    for ours, theirs in zip(*map(torch.utils._pytree.tree_leaves, results), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dynamic", [False, True])
def test_one_graph(dynamic):
    compiled = torch.compile(
        lambda x: FF.lp_pool2d(x, 2, 2, ceil_mode=True), fullgraph=True, backend="aot_eager", dynamic=dynamic
    )
    for size in ((2, 4, 5, 6), (3, 4, 8, 7)):
        x = positive(*size).requires_grad_()
        ours, theirs = compiled(x), F.lp_pool2d(x, 2, 2, ceil_mode=True)
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(*(torch.autograd.grad(y.square().sum(), x)[0] for y in (ours, theirs)))
    torch._dynamo.reset()


def test_empty_meta_short_and_explained():
    assert FF.lp_pool2d(torch.zeros(0, 3, 4, 4), 2, 2).shape == (0, 3, 2, 2)
    x = positive(2, 3, 5, 4, dtype=torch.float32)
    y, meta = FF.lp_pool2d(x, 2, 2, ceil_mode=True), FF.lp_pool2d(x.to("meta"), 2, 2, ceil_mode=True)
    assert (y.shape, y.stride(), y.dtype) == (meta.shape, meta.stride(), meta.dtype)
    for norm in (2, 2.0):
        assert torch.equal(fastconv.ops.functional_lp_pool2d(x, norm, 2, None, True), y)
    (text,) = {row["problem"] for row in fastconv.explain(lambda: FF.lp_pool2d(x, 2, (3, 2))).rows}
    assert text == "lppool n2c3h5w4 r3s2 st3x2 pd0 dl1 f32 nchw fwd norm2"


def test_module_and_convert():
    x = positive(2, 3, 8, 7, dtype=torch.float32)
    model = torch.nn.Sequential(torch.nn.LPPool2d(2, 3, 2, ceil_mode=True), torch.nn.LPPool2d(1.5, (2, 1)))
    converted = fastconv.convert(model)
    assert [type(m) for m in converted] == [fnn.LPPool2d] * 2
    torch.testing.assert_close(converted(x), model(x))
    assert repr(fastconv.unconvert(converted)) == repr(model)
