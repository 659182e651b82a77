"""FF.conv_transpose2d and fnn.ConvTranspose2d: values, shapes, memory formats, derivatives, transforms, graphs."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jvp, vmap

import fastconv
import fastconv.functional as FF
from fastconv import nn as fnn
from test_compile import count_flops
from test_functional import (
    as_exact_as_torch,  # noqa: F401 (a fixture)
    assert_as_accurate,
    views,
)
from values import randn

OPS = torch.ops.fastconv

CASES = {
    "plain": ((2, 4, 5, 6), (4, 3, 3, 3), {}),
    "padded": ((2, 4, 5, 6), (4, 3, 3, 2), dict(padding=(1, 0))),
    "strided": ((2, 4, 5, 6), (4, 3, 3, 2), dict(stride=(2, 3), padding=1)),
    "output_padding": ((2, 4, 5, 6), (4, 3, 3, 4), dict(stride=(2, 3), padding=1, output_padding=(1, 2))),
    "doubling": ((2, 4, 5, 6), (4, 3, 4, 4), dict(stride=2, padding=1)),
    "groups": ((2, 4, 5, 6), (4, 3, 3, 3), dict(groups=2, stride=2)),
    "depthwise": ((2, 4, 5, 6), (4, 1, 3, 3), dict(groups=4, stride=2, padding=1, output_padding=1)),
    "dilated": ((2, 4, 5, 6), (4, 3, 2, 3), dict(dilation=(3, 2), stride=2, padding=1)),
    "output_padding beyond the stride": ((2, 4, 5, 6), (4, 3, 2, 3), dict(dilation=3, padding=2, output_padding=2)),
    "output_padding beyond the padding": (
        (2, 4, 5, 6), (4, 3, 2, 3), dict(dilation=4, padding=1, output_padding=(3, 2)),
    ),
    "1x1": ((2, 4, 5, 6), (4, 3, 1, 1), dict(stride=2, output_padding=1)),
    "unbatched": ((4, 5, 6), (4, 3, 3, 3), dict(stride=2)),
    "lists of one": ((2, 4, 5, 6), (4, 3, 3, 3), dict(stride=[2], padding=[1], output_padding=[1], dilation=[1])),
}  # fmt: skip


pytestmark = pytest.mark.usefixtures("one_thread")


def operands(case, dtype=torch.float64):
    x_size, w_size, kwargs = CASES[case]
    x, w = randn(*x_size, dtype=dtype), randn(*w_size, dtype=dtype)
    return x, w, randn(w_size[1] * kwargs.get("groups", 1), dtype=dtype), kwargs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_values(case, dtype):
    x, w, b, kwargs = operands(case, dtype)
    assert_as_accurate(FF.conv_transpose2d(x, w, b, **kwargs), F.conv_transpose2d, x, w, b, **kwargs)
    assert_as_accurate(FF.conv_transpose2d(x, w, **kwargs), F.conv_transpose2d, x, w, **kwargs)


def test_int64_as_torch():
    x, w = torch.arange(-9, 9).view(1, 2, 3, 3), torch.arange(16).view(2, 2, 2, 2)
    b = torch.tensor([2**62, -5])
    assert torch.equal(FF.conv_transpose2d(x, w, b, 2), F.conv_transpose2d(x, w, b, 2))


def test_views_are_read_as_they_are():
    x, w, b = randn(3, 4, 5, 6), randn(4, 3, 3, 3), randn(6)[::2]
    expected = F.conv_transpose2d(x, w, b, 2, 1)
    for (name, x_view), (_, w_view) in zip(views(x), views(w)):
        for args in ((x_view, w.to(x_view.dtype)), (x.to(w_view.dtype), w_view)):
            ours = FF.conv_transpose2d(*args, b.to(x_view.dtype), 2, 1).double()
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5, msg=lambda text: f"{name}: {text}")


@pytest.mark.parametrize("x_last", [False, True])
@pytest.mark.parametrize("w_last", [False, True])
@pytest.mark.parametrize("case", ["strided", "output_padding beyond the padding"])
def test_memory_format(case, x_last, w_last):
    formats = (torch.contiguous_format, torch.channels_last)
    x, w, b, kwargs = operands(case)
    x, w = x.contiguous(memory_format=formats[x_last]), w.contiguous(memory_format=formats[w_last])
    ours, theirs = FF.conv_transpose2d(x, w, b, **kwargs), F.conv_transpose2d(x, w, b, **kwargs)
    assert ours.stride() == theirs.stride()
    torch.testing.assert_close(ours, theirs)


def test_empty_batch():
    x, w, b = (t.requires_grad_() for t in (torch.zeros(0, 4, 5, 6), torch.ones(4, 3, 3, 3), torch.ones(3)))
    y = FF.conv_transpose2d(x, w, b, 2)
    assert y.shape == (0, 3, 11, 13)
    y.sum().backward()
    assert x.grad.shape == x.shape and not w.grad.any() and not b.grad.any()


def test_nothing_left_of_the_convolution_is_refused_in_words():
    with pytest.raises(RuntimeError, match="^fastconv: output_padding=.* leave nothing of the convolution"):
        FF.conv_transpose2d(torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1), padding=5, output_padding=50, dilation=100)


def test_autocast():
    x, w, b = (randn(*size, dtype=torch.float32) for size in ((2, 4, 5, 6), (4, 3, 3, 3), (3,)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = FF.conv_transpose2d(x, w, b, 2), F.conv_transpose2d(x, w, b, 2)
    assert ours.dtype is theirs.dtype is torch.bfloat16
    # Not against PyTorch's values: on processors without bfloat16 products its sums are rounded to bfloat16, too.
    exact = F.conv_transpose2d(*(t.bfloat16().double() for t in (x, w, b)), 2)
    torch.testing.assert_close(ours.double(), exact, rtol=2**-8, atol=1e-5)


def test_forcing_and_the_short_way():
    x, w, b, _ = operands("plain")
    with fastconv.algorithm("im2col"):
        explanation = fastconv.explain(lambda: FF.conv_transpose2d(x, w, b, 2, 1, 1))
        torch.testing.assert_close(FF.conv_transpose2d(x, w, b, 2, 1, 1), F.conv_transpose2d(x, w, b, 2, 1, 1))
    assert explanation.chosen == ["im2col"]
    text = explanation.rows[0]["problem"]
    assert text == "conv n2c3h10w12 k4r3s3 st2 pd1 dl1 g1 f64 nchw grad_input bias"
    short = fastconv.ops.functional_conv_transpose2d(x, w, b, 2, (1, 1), [1], 1, 1, "auto", "torch")
    assert torch.equal(short, FF.conv_transpose2d(x, w, b, 2, 1, 1))
    with pytest.raises(NotImplementedError, match="winograd"):
        FF.conv_transpose2d(x, w, b, 2, algorithm="winograd")


# --- derivatives -------------------------------------------------------------------------------------------------

SMALL = {
    "plain": ((1, 2, 2, 3), (2, 2, 2, 2), {}),
    "strided, padded": ((1, 2, 2, 3), (2, 2, 3, 2), dict(stride=(2, 3), padding=1, output_padding=(1, 2))),
    "groups, dilated": ((1, 2, 2, 3), (2, 1, 2, 2), dict(groups=2, dilation=(3, 2), padding=1, output_padding=(2, 1))),
    "beyond": ((1, 2, 2, 2), (2, 2, 2, 2), dict(dilation=3, output_padding=2)),
    "unbatched": ((2, 2, 3), (2, 2, 2, 2), dict(stride=2)),
}


@pytest.mark.parametrize("case", SMALL)
def test_derivatives(case):
    x_size, w_size, kwargs = SMALL[case]
    x, w = randn(*x_size).requires_grad_(), randn(*w_size).requires_grad_()
    b = randn(w_size[1] * kwargs.get("groups", 1)).requires_grad_()

    def function(x, w, b):
        return FF.conv_transpose2d(x, w, b, **kwargs)

    checks = dict(check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    assert gradcheck(function, (x, w, b), **checks)
    assert gradgradcheck(function, (x, w, b))


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2), (0, 1, 2)], ids=str)
def test_any_subset_of_gradients(wanted):
    args = [randn(2, 4, 3, 4), randn(4, 1, 3, 2), randn(2)]
    for i in wanted:
        args[i].requires_grad_()

    def gradients(f):
        y = f(*args, stride=2, padding=1, groups=2).square().sum()
        return torch.autograd.grad(y, [args[i] for i in wanted])

    for ours, theirs in zip(gradients(FF.conv_transpose2d), gradients(F.conv_transpose2d)):
        torch.testing.assert_close(ours, theirs)


TRANSFORMS = {
    "vmap of inputs": lambda f: lambda x, w, b: vmap(f, (1, None, None))(torch.stack([x, -x], 1), w, b),
    "vmap of filters": lambda f: lambda x, w, b: vmap(f, (None, 0, None))(x, torch.stack([w, -w]), b),
    "vmap of biases": lambda f: lambda x, w, b: vmap(f, (None, None, 0))(x, w, torch.stack([b, -b])),
    "vmap of all": lambda f: lambda *a: vmap(f)(*(torch.stack([t, -t]) for t in a)),
    "per sample": lambda f: lambda x, w, b: vmap(
        grad(lambda w, b, x: f(x[None], w, b).square().sum(), (0, 1)), (None, None, 0)
    )(w, b, x),
    "jvp": lambda f: lambda *a: jvp(f, a, tuple(3 * t for t in a)),
    "jvp of one": lambda f: lambda x, w, b: [
        jvp(lambda w: f(x, w, b), (w,), (w,)), jvp(lambda b: f(x, w, b), (b,), (b,)),
    ],
    "hessian": lambda f: hessian(lambda *a: f(*a).square().sum(), (1, 2)),
    "forward over forward": lambda f: lambda x, w, b: jacfwd(jacfwd(lambda t: f(t * x, t * w, b).sum()))(b[0]),
}  # fmt: skip


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms(transform, groups):
    args = randn(2, 4, 3, 2), randn(4, 3, 2, 2), randn(3 * groups)
    results = (
        TRANSFORMS[transform](lambda x, w, b, f=f: f(x, w, b, (2, 1), 1, (1, 0), groups))(*args)
        for f in (FF.conv_transpose2d, F.conv_transpose2d)
    )
    for ours, theirs in zip(*map(torch.utils._pytree.tree_leaves, results), strict=True):
        torch.testing.assert_close(ours, theirs)


# --- graphs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dynamic", [False, True])
def test_one_graph(dynamic):
    w, b = randn(4, 3, 3, 2).requires_grad_(), randn(3).requires_grad_()

    def function(x):
        return FF.conv_transpose2d(x, w, b, 2, 1, 1)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for size in ((2, 4, 5, 6), (3, 4, 4, 7)):
        x = randn(*size)
        ours, theirs = (
            (y, *torch.autograd.grad(y.square().sum(), (w, b)))
            for y in (compiled(x), F.conv_transpose2d(x, w, b, 2, 1, 1))
        )
        for a, c in zip(ours, theirs):
            torch.testing.assert_close(a, c)
    torch._dynamo.reset()


def test_meta_and_flops():
    x, w, b = randn(2, 4, 5, 6).requires_grad_(), randn(4, 3, 3, 2).requires_grad_(), randn(3)
    for kwargs in (dict(stride=2, output_padding=1), dict(dilation=3, output_padding=2)):
        y = FF.conv_transpose2d(x, w, b, **kwargs)
        meta = FF.conv_transpose2d(x.to("meta"), w.to("meta"), b.to("meta"), **kwargs)
        assert (meta.shape, meta.stride(), meta.dtype) == (y.shape, y.stride(), y.dtype)
    ours = count_flops(lambda x, w: FF.conv_transpose2d(x, w, b, 2, 1), x, w)
    theirs = count_flops(lambda x, w: F.conv_transpose2d(x, w, b, 2, 1), x, w)
    assert ours[OPS.conv_transpose2d] == 2 * 2 * 5 * 6 * 4 * 3 * 3 * 2
    assert sum(ours.values()) == sum(theirs.values())


# --- the module --------------------------------------------------------------------------------------------------


def test_module():
    torch.manual_seed(0)
    ours = fnn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, groups=2)
    theirs = torch.nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, groups=2)
    ours.load_state_dict(theirs.state_dict())
    x = randn(2, 4, 5, 6, dtype=torch.float32)
    torch.testing.assert_close(ours(x), theirs(x))
    for size in ([10, 11], [9, 12], (2, 6, 9, 11)):
        torch.testing.assert_close(ours(x, output_size=size), theirs(x, output_size=size))
    with pytest.raises(ValueError) as expected:
        theirs(x, output_size=[20, 20])
    with pytest.raises(ValueError) as raised:
        ours(x, output_size=[20, 20])
    assert str(raised.value) == str(expected.value)
    assert repr(ours).removeprefix("ConvTranspose2d") == repr(theirs).removeprefix("ConvTranspose2d")
    assert "algorithm='direct'" in repr(fnn.ConvTranspose2d(4, 6, 3, algorithm="direct"))
    with pytest.raises(TypeError, match="algorithm must be a str"):
        fnn.ConvTranspose2d(4, 6, 3, algorithm=3)


def test_convert_exchanges_it():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.ConvTranspose2d(4, 3, 2, 2))
    converted = fastconv.convert(model)
    assert type(converted[2]) is fnn.ConvTranspose2d
    x = randn(2, 3, 6, 5, dtype=torch.float32)
    torch.testing.assert_close(converted(x), model(x))
    assert repr(fastconv.unconvert(converted)) == repr(model)
