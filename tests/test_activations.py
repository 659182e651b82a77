"""The activations of FF.conv2d: values, derivatives of any order, what is saved, and bad words."""

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck
from torch.func import hessian, jacfwd, jacrev, jvp, vmap

import fastconv
import fastconv.functional as FF
from test_autograd import saved_bytes
from test_functional import (
    as_exact_as_torch,  # noqa: F401 (a fixture)
    assert_as_accurate,
)
from values import randn

OPS = torch.ops.fastconv

REFERENCES = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "leaky_relu:0.2": lambda z: F.leaky_relu(z, 0.2),
    "leaky_relu:0": lambda z: F.leaky_relu(z, 0),
    "relu6": lambda z: F.relu6(4 * z),  # see scaled()
    "elu": F.elu,
    "elu:0.5": lambda z: F.elu(z, 0.5),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": F.silu,
    "gelu": F.gelu,
    "hardswish": lambda z: F.hardswish(4 * z),
}
OF_OUTPUT = ["leaky_relu:0.2", "relu6", "elu:0.5", "sigmoid", "tanh"]
CURVED = ["elu:0.5", "sigmoid", "tanh"]
OF_INPUT = ["silu", "gelu", "hardswish"]


pytestmark = pytest.mark.usefixtures("one_thread")


def scaled(word, *tensors):
    """relu6 and hardswish bend at 6 and 3: their convolutions are made larger by 4, as the references are."""
    return tuple(4 * t for t in tensors) if word in ("relu6", "hardswish") else tensors


def ours(word, **kwargs):
    def function(x, w, b=None, r=None):
        return FF.conv2d(*scaled(word, x), w, *(scaled(word, b) if b is not None else (None,)), activation=word,
                         residual=scaled(word, r)[0] if r is not None else None, **kwargs)  # fmt: skip

    return function


def theirs(word, **kwargs):
    def function(x, w, b=None, r=None):
        z = F.conv2d(x, w, b, **kwargs)
        return REFERENCES[word](z if r is None else z + r)

    return function


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("word", REFERENCES)
def test_values(word, dtype):
    x, w, b = randn(2, 4, 9, 7, dtype=dtype) / 2, randn(6, 2, 3, 2, dtype=dtype) / 2, randn(6, dtype=dtype)
    kwargs = dict(stride=(2, 1), padding=1, groups=2)
    assert_as_accurate(ours(word, **kwargs)(x, w, b), theirs(word, **kwargs), x, w, b)
    r = randn(2, 6, 5, 8, dtype=dtype)
    last = x.contiguous(memory_format=torch.channels_last)
    assert_as_accurate(ours(word, **kwargs)(last, w, b, r), theirs(word, **kwargs), last, w, b, r)
    assert_as_accurate(ours(word, **kwargs)(x[0], w), theirs(word, **kwargs), x[0], w)


@pytest.mark.parametrize("word", REFERENCES)
def test_nan_and_infinities_as_in_torch(word):
    w = torch.ones(1, 1, 1, 1)
    x = torch.tensor([float("nan"), -float("inf"), float("inf"), -100.0, -1.0, -0.0, 0.0, 1.0, 100.0]).view(1, 1, 3, 3)
    expected = fastconv._activations.apply(word, x)
    if word in OF_INPUT:  # torch multiplies infinity by 0; these are the limits
        expected[x == -float("inf")] = 0
        expected[x == float("inf")] = float("inf")
    torch.testing.assert_close(FF.conv2d(x, w, activation=word), expected, equal_nan=True)


@pytest.mark.parametrize("word", REFERENCES)
def test_derivatives(word):
    x, w, b = (randn(*size, seed=3).requires_grad_() for size in ((1, 2, 3, 3), (2, 2, 2, 2), (2,)))
    r = randn(1, 2, 2, 2).requires_grad_()
    function = ours(word)
    assert gradcheck(function, (x, w, b, r), check_forward_ad=True)
    assert gradgradcheck(function, (x, w, b, r))
    assert gradgradcheck(function, (x, w, b))


def derivatives(function, args, orders=3):
    y = function(*args).square().sum()
    found = []
    for _ in range(orders):
        gradients = torch.autograd.grad(y, args, create_graph=True)
        found += gradients
        y = sum(g.square().sum() for g in gradients)
    return found


@pytest.mark.parametrize("word", REFERENCES)
def test_three_orders(word):
    args = [randn(*size, seed=5).requires_grad_() for size in ((2, 4, 4, 3), (4, 2, 2, 2), (4,))]
    for a, b in zip(*(derivatives(f(word, groups=2), args) for f in (ours, theirs))):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 3)], ids=str)
@pytest.mark.parametrize("word", ["leaky_relu:0.2", "tanh", "gelu"])
def test_any_subset_of_gradients(word, wanted):
    args = [randn(2, 2, 4, 3), randn(3, 2, 2, 2), randn(3), randn(2, 3, 3, 2)]
    for i in wanted:
        args[i].requires_grad_()
    first, second = (
        torch.autograd.grad(f(word)(*args).square().sum(), [args[i] for i in wanted]) for f in (ours, theirs)
    )
    for a, b in zip(first, second):
        torch.testing.assert_close(a, b)


TRANSFORMS = {
    "vmap": lambda f: lambda x, w, b: vmap(f, (0, None, None))(torch.stack([x, -x]), w, b),
    "vmap of filters": lambda f: lambda x, w, b: vmap(f, (None, 0, 0))(x, torch.stack([w, -w]), torch.stack([b, b])),
    "jvp": lambda f: lambda *a: jvp(f, a, tuple(3 * t for t in a)),
    "hessian": lambda f: hessian(lambda *a: f(*a).square().sum(), (1, 2)),
    "forward over forward": lambda f: jacfwd(jacfwd(lambda *a: f(*a).square().sum(), 2), 2),
    "reverse over forward": lambda f: jacrev(jacfwd(lambda *a: f(*a).square().sum(), 2), 2),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("word", REFERENCES)
def test_transforms(word, transform):
    x, w, b = randn(1, 2, 3, 3), randn(2, 2, 2, 2), randn(2)
    a, b = (torch.utils._pytree.tree_leaves(TRANSFORMS[transform](f(word))(x, w, b)) for f in (ours, theirs))
    for mine, reference in zip(a, b, strict=True):
        torch.testing.assert_close(mine, reference)


@pytest.mark.parametrize("word", [*CURVED, "leaky_relu:0.2"])
def test_forward_mode_sees_through_a_plain_backward(word):
    x, w, t = randn(1, 2, 3, 3), randn(2, 2, 2, 2).requires_grad_(), randn(1, 2, 3, 3, seed=1)
    tangents = []
    for f in (ours, theirs):
        with forward_ad.dual_level():
            y = f(word)(forward_ad.make_dual(x, t), w)
            (gradient,) = torch.autograd.grad(y.sum(), w)
            tangents.append(forward_ad.unpack_dual(gradient).tangent)
    torch.testing.assert_close(*tangents)


# --- the operators themselves ----------------------------------------------------------------------------------

CONF = dict(stride=[2, 1], padding=[1, 0, 0, 1], dilation=[1, 1], groups=1, algorithm="auto", accuracy="torch")


def leaves():
    x, w, b = randn(1, 2, 4, 3), randn(2, 2, 2, 2), randn(2)
    gy = randn(1, 2, 2, 3)
    return [t.requires_grad_() for t in (x, w, b, gy)]


@pytest.mark.parametrize("word", [*OF_OUTPUT, *OF_INPUT])
def test_the_operator_has_derivatives(word):
    x, w, b, r = leaves()

    def function(x, w, b, r):
        return OPS.conv2d(*scaled(word, x), w, b, r, **CONF, activation=word)

    assert gradcheck(function, (x, w, b, r))
    assert gradgradcheck(function, (x, w, b, r))


@pytest.mark.parametrize("word", OF_OUTPUT)
def test_gradient_operators_have_derivatives(word):
    """With respect to `output` too, from which a curved activation's derivative is made."""
    x, w, _, gy = leaves()
    y = randn(1, 2, 2, 3, seed=2).requires_grad_(word in CURVED)
    conf = dict(CONF, activation=word)
    size = dict(input_size=x.shape), dict(weight_size=w.shape, bias=True)
    for function, args in (
        (lambda gy, w, y: OPS.conv2d_grad_input(gy, w, y, **size[0], **conf), (gy, w, y)),
        (lambda x, gy, y: OPS.conv2d_grad_weight(x, gy, y, **size[1], **conf), (x, gy, y)),
    ):
        assert gradcheck(function, args)
        assert gradgradcheck(function, args)


@pytest.mark.parametrize("word", ["leaky_relu:0.2", "tanh"])
def test_forward_mode_of_the_gradient_passes(word):
    x, w, _, gy = leaves()
    y = randn(1, 2, 2, 3, seed=2).requires_grad_(word in CURVED)
    conf = [2, 1], [1, 0, 0, 1], [1, 1], 1, word, "auto", "torch"
    both = fastconv.autograd.grad_input, fastconv.autograd.grad_weight
    options = dict(check_forward_ad=True, check_backward_ad=False)
    assert gradcheck(lambda gy, w, y: both[0](gy, w, y, list(x.shape), *conf), (gy, w, y), **options)
    assert gradcheck(lambda x, gy, y: both[1](x, gy, y, list(w.shape), True, *conf), (x, gy, y), **options)


# --- what is saved, how calls go, bad words ----------------------------------------------------------------------


@pytest.mark.parametrize("word", [*OF_OUTPUT, *OF_INPUT])
def test_one_tensor_is_saved(word):
    x, w = randn(2, 3, 8, 8, dtype=torch.float32), randn(4, 3, 3, 3, dtype=torch.float32)
    x.requires_grad_(), w.requires_grad_()
    saved, output = saved_bytes(lambda x, w: FF.conv2d(x, w, activation=word), x, w)
    assert saved == output


@pytest.mark.parametrize("word", REFERENCES)
def test_plain_calls_take_the_short_way(word):
    x, w = randn(1, 2, 5, 5), randn(3, 2, 3, 3)
    assert fastconv.ops.functional_conv2d(x, w, None, None, 1, 0, 1, 1, word, "auto", "torch") is not None


def test_one_graph():
    def chain(x, weights):
        for word, w in zip([*OF_OUTPUT, *OF_INPUT], weights):
            x = FF.conv2d(x, w, padding=1, activation=word)
        return x

    x, weights = randn(2, 3, 5, 4), [(randn(3, 3, 3, 3, seed=i) / 3).requires_grad_() for i in range(8)]
    compiled = torch.compile(chain, fullgraph=True, backend="aot_eager")
    a, b = (f(x, weights) for f in (compiled, chain))
    torch.testing.assert_close(a, b)
    for mine, reference in zip(*(torch.autograd.grad(y.square().sum(), weights) for y in (a, b))):
        torch.testing.assert_close(mine, reference)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, weights), a)
    torch._dynamo.reset()


def test_explain_names_the_activation():
    x, w = randn(1, 2, 5, 5), randn(3, 2, 3, 3)
    with torch.no_grad():
        (text,) = {row["problem"] for row in fastconv.explain(lambda: FF.conv2d(x, w, activation="elu:0.5")).rows}
    assert text.endswith(" elu:0.5")


@pytest.mark.parametrize(
    "word, error, message",
    [
        ("nosuch", ValueError, "unknown activation 'nosuch'; known are: None, relu, leaky_relu, relu6"),
        ("none", ValueError, "unknown activation 'none'; known are: None, relu"),
        ("relu:1", ValueError, "unknown activation 'relu:1'"),
        ("elu:", ValueError, "unknown activation 'elu:'"),
        ("elu:x", ValueError, "unknown activation 'elu:x'"),
        ("elu:-1", ValueError, "the parameter of activation 'elu:-1' must be finite and at least 0"),
        ("leaky_relu:inf", ValueError, "must be finite"),
        ("leaky_relu:nan", ValueError, "must be finite"),
        ("tanh\0", ValueError, "unknown activation"),
        (torch.relu, TypeError, "activation must be None or a str"),
    ],
)
@pytest.mark.parametrize("wanted", [False, True])
def test_bad_words(word, error, message, wanted):
    x, w = randn(1, 2, 5, 5).requires_grad_(wanted), randn(3, 2, 3, 3)
    with pytest.raises(error, match=f"^fastconv: .*{message}"):
        FF.conv2d(x, w, activation=word)
    if isinstance(word, str) and word != "none":
        with pytest.raises(ValueError, match="^fastconv: "):
            OPS.conv2d(x, w, None, None, [1, 1], [0] * 4, [1, 1], 1, word, "auto", "torch")


def test_gradient_passes_refuse_what_does_not_follow_from_the_output():
    gy, w = randn(1, 3, 3, 3), randn(3, 2, 3, 3)
    with pytest.raises(ValueError, match="^fastconv: the gradient of silu does not follow from its output"):
        OPS.conv2d_grad_input(gy, w, gy, [1, 2, 5, 5], [1, 1], [0] * 4, [1, 1], 1, "silu", "auto", "torch")
