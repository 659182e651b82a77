"""Derivatives: reverse and forward mode, of any order; what is saved and what is computed for them."""

import copy
import threading

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

import fastconv
import fastconv.functional as FF

OPS = torch.ops.fastconv


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=dtype)


def leaf(*shape, seed=0, dtype=torch.float64):
    return randn(*shape, seed=seed, dtype=dtype).requires_grad_()


def assert_same(function, reference, *args):
    """Both return the same tensors, up to rounding."""
    ours, theirs = (torch.utils._pytree.tree_leaves(f(*args)) for f in (function, reference))
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b)


# --- gradcheck -----------------------------------------------------------------------------------------------

CONVOLUTIONS = {
    "plain": ((2, 2, 4, 5), (3, 2, 3, 2), {}),
    "stride": ((1, 2, 6, 5), (2, 2, 3, 2), dict(stride=(2, 1), padding=1)),
    "stride beyond window": ((1, 2, 7, 6), (2, 2, 2, 1), dict(stride=(3, 2))),
    "dilation": ((1, 2, 6, 7), (2, 2, 2, 3), dict(dilation=(3, 2), padding=(1, 2))),
    "groups": ((1, 4, 4, 3), (6, 2, 2, 2), dict(groups=2)),
    "depthwise": ((1, 3, 4, 3), (6, 1, 2, 2), dict(groups=3, padding=1)),
    "same, even": ((1, 2, 3, 4), (2, 2, 2, 4), dict(padding="same")),
    "unbatched": ((2, 4, 5), (3, 2, 3, 2), {}),
}


@pytest.mark.parametrize("relu", [False, True], ids=["linear", "relu"])
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_conv2d(case, relu):
    x_size, w_size, kwargs = CONVOLUTIONS[case]
    x, w, b = leaf(*x_size), leaf(*w_size), leaf(w_size[0])
    r = randn(*FF.conv2d(x, w, **kwargs).shape).requires_grad_()
    activation = "relu" if relu else None

    def plain(x, w):
        return FF.conv2d(x, w, activation=activation, **kwargs)

    def full(x, w, b, r):
        return FF.conv2d(x, w, b, activation=activation, residual=r, **kwargs)

    assert gradcheck(plain, (x, w), check_forward_ad=True, check_batched_grad=True)
    everything = dict(check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    assert gradcheck(full, (x, w, b, r), **everything)
    assert gradgradcheck(plain, (x, w))
    assert gradgradcheck(full, (x, w, b, r))


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (3,), (0, 2), (1, 2), (1, 3), (0, 1, 2, 3)], ids=str)
@pytest.mark.parametrize("relu", [False, True], ids=["linear", "relu"])
def test_any_subset_of_gradients(wanted, relu):
    args = [randn(2, 4, 5, 4), randn(6, 2, 3, 3), randn(6), randn(2, 6, 3, 2)]
    for i in wanted:
        args[i].requires_grad_()

    def function(x, w, b, r):
        return FF.conv2d(x, w, b, groups=2, residual=r, activation="relu" if relu else None)

    def reference(x, w, b, r):
        y = F.conv2d(x, w, b, groups=2) + r
        return F.relu(y) if relu else y

    def derivatives(f):
        inputs = [args[i] for i in wanted]
        first = torch.autograd.grad(f(*args).square().sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs)
        return *first, *second

    assert_same(derivatives, lambda _: derivatives(reference), function)


MAX_POOLS = {
    "plain": dict(kernel_size=2),
    "overlapping": dict(kernel_size=3, stride=2, padding=1),
    "ceil, dilated": dict(kernel_size=(3, 2), stride=(2, 1), padding=1, dilation=(1, 2), ceil_mode=True),
}
AVG_POOLS = {
    "plain": dict(kernel_size=2),
    "overlapping": dict(kernel_size=3, stride=2, padding=1),
    "ceil, without padding": dict(kernel_size=(3, 2), stride=2, padding=1, ceil_mode=True, count_include_pad=False),
    "divisor": dict(kernel_size=(2, 3), stride=1, divisor_override=5),
}


@pytest.mark.parametrize("size", [(2, 2, 5, 6), (2, 5, 6)], ids=str)
@pytest.mark.parametrize(
    "pool, kwargs",
    [pytest.param(FF.max_pool2d, k, id=f"max {n}") for n, k in MAX_POOLS.items()]
    + [pytest.param(FF.avg_pool2d, k, id=f"avg {n}") for n, k in AVG_POOLS.items()],
)
def test_pools(pool, kwargs, size):
    x = leaf(*size)

    def function(x):
        return pool(x, **kwargs)

    assert gradcheck(function, x, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    assert gradgradcheck(function, x)


def test_third_derivative():
    x, w = leaf(1, 2, 5, 4), leaf(2, 2, 3, 2)

    def chain(f, relu):
        y = relu(f(x, w)).pow(4).sum()
        for _ in range(3):
            (g, h) = torch.autograd.grad(y, (x, w), create_graph=True)
            y = g.square().sum() + h.square().sum()
        return y

    torch.testing.assert_close(chain(FF.conv2d_relu, lambda y: y), chain(F.conv2d, F.relu))


def test_max_pool2d_indices_have_no_gradient():
    x = leaf(2, 3, 6, 6)
    y, indices = FF.max_pool2d(x, 2, return_indices=True)
    assert y.requires_grad and not indices.requires_grad
    (ours,) = torch.autograd.grad(y.square().sum(), x)
    (theirs,) = torch.autograd.grad(F.max_pool2d(x, 2).square().sum(), x)
    assert torch.equal(ours, theirs)


def test_relu_passes_nan_as_torch_does():
    x = randn(1, 1, 5, 5)
    x[0, 0, 2, 2] = float("nan")
    w = randn(2, 1, 3, 3)
    gradients = []
    for function in (FF.conv2d_relu, lambda x, w: F.relu(F.conv2d(x, w))):
        inputs = x.clone().requires_grad_(), w.clone().requires_grad_()
        gradients.append(torch.autograd.grad(function(*inputs).sum(), inputs))
    for ours, theirs in zip(*gradients):
        torch.testing.assert_close(ours, theirs, equal_nan=True)


# --- what is saved and what is computed -------------------------------------------------------------------------


def saved_bytes(function, *args):
    """Bytes that autograd keeps for backward, arguments not counted."""
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = function(*args)
    own = {t.untyped_storage().data_ptr() for t in args}
    return sum(size for address, size in storages.items() if address not in own), y.untyped_storage().nbytes()


def test_little_is_saved():
    x, w = leaf(2, 3, 8, 8, dtype=torch.float32), leaf(4, 3, 3, 3, dtype=torch.float32)
    assert saved_bytes(FF.conv2d, x, w)[0] == 0
    saved, output = saved_bytes(FF.conv2d_relu, x, w)
    assert saved == output
    saved, output = saved_bytes(lambda x: FF.max_pool2d(x, 2), x)
    assert saved == output // 4  # one byte an element
    saved, output = saved_bytes(lambda x: FF.max_pool2d(x, 16, 1, 8), x)
    assert saved == output // 2
    assert saved_bytes(lambda x: FF.avg_pool2d(x, 2), x)[0] == 0


def test_only_what_is_needed_is_saved():
    x, w = randn(2, 3, 8, 8), leaf(4, 3, 3, 3)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        FF.conv2d(x, w)
    assert kept == [x.shape]  # the filter would serve the input's gradient, which nobody wants


class Calls(torch.utils._python_dispatch.TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "fastconv":
            self.names.append(func._opname)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "x_wanted, w_wanted, b_wanted, expected",
    [
        (False, True, True, ["conv2d_grad_weight"]),
        (True, False, False, ["conv2d_grad_input"]),
        (False, False, True, []),
        (True, True, True, ["conv2d_grad_input", "conv2d_grad_weight"]),
    ],
)
def test_only_what_is_needed_is_computed(x_wanted, w_wanted, b_wanted, expected):
    x = randn(2, 3, 8, 8).requires_grad_(x_wanted)
    w = randn(4, 3, 3, 3).requires_grad_(w_wanted)
    b = randn(4).requires_grad_(b_wanted)
    y = FF.conv2d_relu(x, w, b)
    with Calls() as calls:
        y.sum().backward()
    assert calls.names == expected


def test_without_gradient_no_offsets_are_made():
    x = leaf(1, 1, 4, 4)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context, Calls() as calls:
            assert not FF.max_pool2d(x, 2).requires_grad
        assert calls.names == ["max_pool2d_values"]


def test_inference_mode():
    with torch.inference_mode():
        y = FF.conv2d_relu(randn(1, 2, 5, 5), randn(3, 2, 3, 3))
    assert y.is_inference()


def test_modified_weight_is_noticed():
    x, w = leaf(1, 2, 5, 5), leaf(3, 2, 3, 3)
    y = FF.conv2d(x, w)
    with torch.no_grad():
        w.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


# --- the short way for plain calls must know what is not plain -------------------------------------------------


def test_dual_tensors_take_the_long_way():
    x, w = randn(1, 2, 5, 5), randn(3, 2, 3, 3)
    with forward_ad.dual_level():
        for f in (lambda x: FF.conv2d(x, w), lambda x: FF.max_pool2d(x, 2), lambda x: FF.avg_pool2d(x, 2)):
            assert forward_ad.unpack_dual(f(forward_ad.make_dual(x, x))).tangent is not None


def test_subclasses_and_modes_are_asked():
    seen = []

    class Loud(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return super().__torch_function__(func, types, args, kwargs or {})

    x, w = randn(1, 2, 5, 5), randn(3, 2, 3, 3)
    y = FF.conv2d(x.as_subclass(Loud), w)
    assert isinstance(y, Loud) and any("fastconv" in name for name in seen)
    with Calls() as calls:
        FF.conv2d(x, w), FF.max_pool2d(x, 2), FF.avg_pool2d(x, 2)
    assert calls.names == ["conv2d", "max_pool2d_values", "avg_pool2d"]


def test_profiler_sees_the_operators():
    x, w = leaf(1, 2, 5, 5), leaf(3, 2, 3, 3)
    with torch.profiler.profile() as profile:
        FF.conv2d(x, w).sum().backward()
    names = {event.key for event in profile.key_averages()}
    assert {"fastconv::conv2d", "fastconv::conv2d_grad_input", "fastconv::conv2d_grad_weight"} <= names


def test_negated_view_is_resolved():
    x = torch.complex(randn(1, 2, 5, 5), randn(1, 2, 5, 5, seed=1)).conj().imag
    assert x.is_neg()
    w = randn(3, 2, 3, 3)
    torch.testing.assert_close(FF.conv2d(x, w), F.conv2d(x.resolve_neg(), w))


# --- the operators themselves ----------------------------------------------------------------------------------

CONF = dict(stride=[2, 1], padding=[1, 0, 1, 2], dilation=[1, 2], groups=2, algorithm="auto", accuracy="torch")
POOL = dict(kernel_size=[3, 2], stride=[2, 1], padding=[1, 1], ceil_mode=True)
RAW_SIZES = (2, 4, 5, 4), (4, 2, 3, 2), (2, 4, 3, 4)


@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize("operator", ["conv2d", "conv2d_grad_input", "conv2d_grad_weight"])
def test_operators_of_convolution_have_derivatives(operator, activation):
    x, w, gy = (leaf(*size) for size in RAW_SIZES)
    b = leaf(4)
    conf = dict(CONF, activation=activation)
    output = None if activation == "none" else randn(*RAW_SIZES[2], seed=9)
    functions = {
        "conv2d": (lambda x, w, b: OPS.conv2d(x, w, b, None, **conf), (x, w, b)),
        "conv2d_grad_input": (
            lambda gy, w: OPS.conv2d_grad_input(gy, w, output, input_size=x.shape, **conf),
            (gy, w),
        ),
        "conv2d_grad_weight": (
            lambda x, gy: OPS.conv2d_grad_weight(x, gy, output, weight_size=w.shape, bias=True, **conf),
            (x, gy),
        ),
    }
    function, args = functions[operator]
    assert gradcheck(function, args)
    assert gradgradcheck(function, args)


def test_operators_of_pools_have_derivatives():
    x = leaf(2, 2, 5, 4)
    conf = dict(POOL, dilation=[1, 1])
    y, offsets = OPS.max_pool2d(x, **conf)
    gy = leaf(*y.shape)
    average = dict(POOL, count_include_pad=False, divisor_override=None)
    for function, arg in (
        (lambda x: OPS.max_pool2d(x, **conf)[0], x),
        (lambda x: OPS.max_pool2d_values(x, **conf), x),
        (lambda gy: OPS.max_pool2d_backward(gy, offsets, x.shape, **conf), gy),
        (lambda x: OPS.max_pool2d_gather(x, offsets, **conf), x),
        (lambda x: OPS.avg_pool2d(x, **average), x),
        (lambda gy: OPS.avg_pool2d_backward(gy, x.shape, **average), gy),
    ):
        assert gradcheck(function, arg)
        assert gradgradcheck(function, arg)


# --- modules ---------------------------------------------------------------------------------------------------


def network():
    torch.manual_seed(0)
    fnn = fastconv.nn
    layers = (
        fnn.Conv2d(3, 6, 3, padding=1),
        torch.nn.ReLU(),
        fnn.MaxPool2d(2),
        fnn.Conv2d(6, 4, 3, stride=2, groups=2),
        fnn.AvgPool2d(2),
    )
    return torch.nn.Sequential(*layers).double()


def gradients(model, x, run):
    model.zero_grad()
    x = x.clone().requires_grad_()
    run(x).square().sum().backward()
    return [x.grad, *(p.grad.clone() for p in model.parameters())]


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(reentrant):
    model, x = network(), randn(2, 3, 13, 12)
    expected = gradients(model, x, model)
    ours = gradients(model, x, lambda x: checkpoint(model, x, use_reentrant=reentrant))
    assert_same(lambda: ours, lambda: expected)


def test_deepcopy():
    model, x = network(), randn(2, 3, 13, 12)
    model(x).sum().backward()
    copied = copy.deepcopy(model)
    assert_same(lambda: gradients(copied, x, copied), lambda: gradients(model, x, model))


def test_backward_in_other_threads():
    # Backward may run on a thread of autograd's or of the caller's: the choice travels with the context.
    x, w = leaf(1, 2, 5, 5), leaf(3, 2, 3, 3)
    expected = torch.autograd.grad(F.conv2d(x, w).square().sum(), (x, w))
    with fastconv.algorithm("direct"):
        y = FF.conv2d(x, w).square().sum()
    found = []
    thread = threading.Thread(target=lambda: found.extend(torch.autograd.grad(y, (x, w))))
    thread.start()
    thread.join()
    assert_same(lambda: found, lambda: expected)
