"""Bad arguments: torch's exception type and message, compared with the installed torch; and raw operators stay safe."""

import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy
import pytest
import torch
import torch.nn.functional as F

import fastconv
import fastconv.functional as FF

OPS = torch.ops.fastconv


def X(*shape, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(len(shape))
    values = torch.randint(-4, 5, shape, generator=generator)
    return values.to(dtype).to(device)


X4 = partial(X, 2, 3, 8, 8)
W4 = partial(X, 6, 3, 3, 3)

# name -> (positional arguments, keywords). Some are valid: what torch accepts, fastconv accepts.
CONV = {
    "input 5d": ((X(1, 3, 1, 8, 8), W4()), {}),
    "input 2d": ((X(3, 8), W4()), {}),
    "weight 3d": ((X4(), X(6, 3, 3)), {}),
    "weight 5d": ((X4(), X(6, 3, 3, 3, 3)), {}),
    "in ch mismatch": ((X(2, 4, 8, 8), W4()), {}),
    "in ch mismatch empty batch": ((X(0, 4, 8, 8), W4()), {}),
    "in ch mismatch groups2": ((X(2, 4, 8, 8), W4()), dict(groups=2)),
    "groups not div out": ((X(2, 6, 8, 8), X(5, 3, 3, 3)), dict(groups=2)),
    "groups 0": ((X4(), W4()), dict(groups=0)),
    "groups -1": ((X4(), W4()), dict(groups=-1)),
    "bias size": ((X4(), W4(), X(5)), {}),
    "bias 2d": ((X4(), W4(), X(6, 1)), {}),
    "neg pad": ((X4(), W4()), dict(padding=-1)),
    "stride0": ((X4(), W4()), dict(stride=0)),
    "stride neg": ((X4(), W4()), dict(stride=-1)),
    "dil0": ((X4(), W4()), dict(dilation=0)),
    "dil neg": ((X4(), W4()), dict(dilation=-1)),
    "kernel bigger": ((X(2, 3, 2, 2), W4()), {}),
    "kernel bigger dil": ((X(2, 3, 4, 4), W4()), dict(dilation=2)),
    "dtype mismatch": ((X4(), W4(dtype=torch.double)), {}),
    "dtype mismatch, double input": ((X4(dtype=torch.double), W4()), {}),
    "bias dtype mismatch": ((X4(), W4(), X(6, dtype=torch.double)), {}),
    "int input": ((X4(dtype=torch.int32), W4(dtype=torch.int32)), {}),
    "int64 input": ((X4(dtype=torch.int64), W4(dtype=torch.int64), X(6, dtype=torch.int64)), {}),
    "bool input": ((X4(dtype=torch.bool), W4(dtype=torch.bool)), {}),
    "stride 3 list": ((X4(), W4()), dict(stride=[1, 1, 1])),
    "stride empty list": ((X4(), W4()), dict(stride=[])),
    "stride 1 list": ((X4(), W4()), dict(stride=[2])),
    "stride None": ((X4(), W4()), dict(stride=None)),
    "stride bool": ((X4(), W4()), dict(stride=True)),
    "stride numpy": ((X4(), W4()), dict(stride=numpy.int64(2))),
    "padding 3 list": ((X4(), W4()), dict(padding=[1, 1, 1])),
    "padding 4 list": ((X4(), W4()), dict(padding=[1, 1, 1, 1])),
    "padding 1 list": ((X4(), W4()), dict(padding=[1])),
    "padding str foo": ((X4(), W4()), dict(padding="foo")),
    "padding same stride2": ((X4(), W4()), dict(padding="same", stride=2)),
    "padding same even k": ((X4(), X(6, 3, 2, 4)), dict(padding="same")),
    "padding valid": ((X4(), W4()), dict(padding="valid", stride=2)),
    "empty batch": ((X(0, 3, 8, 8), W4(), X(6)), {}),
    "zero in ch": ((X(2, 0, 8, 8), X(6, 0, 3, 3), X(6)), {}),
    "zero out ch": ((X4(), X(0, 3, 3, 3)), {}),
    "zero spatial": ((X(2, 3, 0, 8), W4()), dict(padding=1)),
    "zero spatial, window in padding": ((X(2, 3, 0, 8), W4()), dict(padding=2)),
    "meta/cpu": ((X4(device="meta"), W4()), {}),
    "float stride": ((X4(), W4()), dict(stride=1.0)),
    "float stride in a list": ((X4(), W4()), dict(stride=[1.0, 1.0])),
    "float groups": ((X4(), W4()), dict(groups=1.0)),
    "None weight": ((X4(), None), {}),
    "numpy": ((numpy.zeros((2, 3, 8, 8), numpy.float32), W4()), {}),
    "sparse": ((X4().to_sparse(), W4()), {}),
    "unbatched": ((X(3, 8, 8), W4(), X(6)), dict(padding=1)),
}

MAX = {
    "2d in": ((X(8, 8), 2), {}),
    "5d in": ((X(1, 1, 3, 8, 8), 2), {}),
    "k 0": ((X4(), 0), {}),
    "k neg": ((X4(), -1), {}),
    "k 3 list": ((X4(), [2, 2, 2]), {}),
    "k [2]": ((X4(), [2]), {}),
    "k [2, 3]": ((X4(), (2, 3)), {}),
    "stride 0": ((X4(), 2), dict(stride=0)),
    "stride neg": ((X4(), 2), dict(stride=-1)),
    "stride 3 list": ((X4(), 2), dict(stride=[1, 1, 1])),
    "stride []": ((X4(), 2), dict(stride=[])),
    "pad > k/2": ((X4(), 2), dict(padding=2)),
    "pad neg": ((X4(), 2), dict(padding=-1)),
    "pad 3 list": ((X4(), 2), dict(padding=[1, 1, 1])),
    "too small": ((X(1, 1, 2, 2), 3), {}),
    "zero ch batch": ((X(0, 3, 8, 8), 2), {}),
    "zero channels": ((X(2, 0, 8, 8), 2), {}),
    "zero channels, unbatched": ((X(0, 8, 8), 2), {}),
    "zero spatial": ((X(2, 3, 0, 8), 2), {}),
    "zero spatial padded": ((X(2, 3, 0, 8), 2), dict(padding=1)),
    "int32": ((X4(dtype=torch.int32), 2), {}),
    "int64": ((X4(dtype=torch.int64), 2), {}),
    "uint8": ((X4(dtype=torch.uint8), 2), {}),
    "bool": ((X4(dtype=torch.bool), 2), {}),
    "complex": ((X4(dtype=torch.complex64), 2), {}),
    "half": ((X4(dtype=torch.half), 2), {}),
    "bf16": ((X4(dtype=torch.bfloat16), 2), {}),
    "unbatched": ((X(3, 8, 8), 2), {}),
    "ceil": ((X(2, 3, 7, 7), 2), dict(ceil_mode=True)),
    "str k": ((X4(), "2"), {}),
    "float k": ((X4(), 2.0), {}),
    "max dil0": ((X4(), 2), dict(dilation=0)),
    "max dil neg": ((X4(), 2), dict(dilation=-1)),
    "max dil 3 list": ((X4(), 2), dict(dilation=[1, 1, 1])),
    "max dil big": ((X4(), 3), dict(dilation=6)),
    "max ret idx": ((X4(), 2), dict(return_indices=True)),
    "max nan": ((torch.full((1, 1, 2, 2), float("nan")), 2), {}),
    "max overflow pad": ((X4(), 2**34), dict(padding=2**33)),
    "numpy": ((numpy.zeros((2, 3, 8, 8), numpy.float32), 2), {}),
}
MAX_ONLY = {name for name in MAX if name.startswith("max ")}

AVG = {name: case for name, case in MAX.items() if name not in MAX_ONLY} | {
    "int16": ((X4(dtype=torch.int16), 2), {}),
    "avg divisor 0": ((X4(), 2), dict(divisor_override=0)),
    "avg divisor neg": ((X4(), 2), dict(divisor_override=-3)),
    "avg divisor 0, empty batch": ((X(0, 3, 8, 8), 2), dict(divisor_override=0)),
    "avg divisor float": ((X4(), 2), dict(divisor_override=2.0)),
}

CASES = [
    pytest.param(function, *case, id=f"{function}: {name}")
    for function, cases in (("conv2d", CONV), ("max_pool2d", MAX), ("avg_pool2d", AVG))
    for name, case in cases.items()
]


def outcome(function, args, kwargs):
    try:
        return function(*args, **kwargs)
    except Exception as error:
        return error


def tensors(result):
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("name, args, kwargs", CASES)
def test_as_torch(name, args, kwargs):
    theirs = outcome(getattr(F, name), args, kwargs)
    ours = outcome(getattr(FF, name), args, kwargs)
    if isinstance(theirs, Exception):
        assert type(ours) is type(theirs), ours
        assert str(ours) == str(theirs)
        return
    if isinstance(ours, Exception):
        raise ours
    for mine, reference in zip(tensors(ours), tensors(theirs), strict=True):
        assert mine.device == reference.device and mine.dtype == reference.dtype
        assert mine.shape == reference.shape
        if mine.device.type != "meta":
            torch.testing.assert_close(mine, reference, rtol=0, atol=0, equal_nan=True)


def test_weight_without_data():
    # torch answers with uninitialised memory on the CPU; a result that depends on a meta tensor has no data either.
    assert FF.conv2d(X4(), W4(device="meta")).is_meta


# Where torch accepts what we refuse, or its message is an internal of its backend: the type is torch's, the words ours.


@pytest.mark.parametrize("size", [(6, 3, 0, 0), (6, 3, 0, 3), (6, 3, 3, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kernel_without_elements(size, dtype):
    args = X4(dtype=dtype), X(*size, dtype=dtype)
    theirs = outcome(F.conv2d, args, {})
    with pytest.raises(type(theirs), match=f"^fastconv: a kernel of {size[2]} x {size[3]} has no elements"):
        FF.conv2d(*args)


def test_complex_is_not_implemented():
    with pytest.raises(NotImplementedError, match="\"conv2d\" not implemented for 'ComplexFloat'"):
        FF.conv2d(X4(dtype=torch.complex64), W4(dtype=torch.complex64))


def test_unknown_names():
    with pytest.raises(ValueError, match="^fastconv: unknown algorithm 'nosuch'; known are: auto, direct"):
        FF.conv2d(X4(), W4(), algorithm="nosuch")
    with pytest.raises(ValueError, match="^fastconv: unknown algorithm 'nosuch'"):
        fastconv.algorithm("nosuch")
    with pytest.raises(TypeError, match="^fastconv: algorithm must be a str"):
        fastconv.algorithm(3)


@pytest.mark.parametrize("residual", [X(6, 6, 6), X(2, 6, 6, 1), X(2, 5, 6, 6), X(2, 6, 6, 6, dtype=torch.double)])
def test_residual_must_match_the_output(residual):
    with pytest.raises(RuntimeError, match="residual"):
        FF.conv2d(X4(), W4(), residual=residual)


def test_error_is_not_torchs_when_torch_would_accept():
    # A refusal must reach the caller even though torch could do the work: nothing falls back.
    with pytest.raises(NotImplementedError, match="not implemented"):
        FF.conv2d(X4(dtype=torch.complex64), W4(dtype=torch.complex64), padding="same")


# --- raw operators: any argument may come, none may reach a kernel unchecked ---------------------------------

HUGE = 2**62
CONV_CONF = dict(
    stride=[1, 1], padding=[0] * 4, dilation=[1, 1], groups=1, activation="none", algorithm="auto", accuracy="torch"
)
POOL_CONF = dict(kernel_size=[2, 2], stride=[2, 2], padding=[0, 0], ceil_mode=False)
MAX_CONF = dict(POOL_CONF, dilation=[1, 1])
AVG_CONF = dict(POOL_CONF, count_include_pad=True, divisor_override=None)
OFFSETS = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)

VALID = {
    "conv2d": dict(input=X4(), weight=W4(), bias=None, residual=None, **CONV_CONF),
    "conv2d_grad_input": dict(
        grad_output=X(2, 6, 6, 6), weight=W4(), output=None, input_size=[2, 3, 8, 8], **CONV_CONF
    ),
    "conv2d_grad_weight": dict(
        input=X4(), grad_output=X(2, 6, 6, 6), output=None, weight_size=[6, 3, 3, 3], bias=True, **CONV_CONF
    ),
    "max_pool2d": dict(input=X4(), **MAX_CONF),
    "max_pool2d_values": dict(input=X4(), **MAX_CONF),
    "max_pool2d_backward": dict(grad_output=X(2, 3, 4, 4), offsets=OFFSETS, input_size=[2, 3, 8, 8], **MAX_CONF),
    "max_pool2d_gather": dict(input=X4(), offsets=OFFSETS, **MAX_CONF),
    "max_pool2d_indices": dict(offsets=OFFSETS, input_size=[2, 3, 8, 8], **MAX_CONF),
    "avg_pool2d": dict(input=X4(), **AVG_CONF),
    "avg_pool2d_backward": dict(grad_output=X(2, 3, 4, 4), input_size=[2, 3, 8, 8], **AVG_CONF),
}

BAD_LISTS = [[], [1], [1, 1, 1], [0, 1], [1, -1], [HUGE, HUGE], [-HUGE, 1], [2**63 - 1, 2**63 - 1]]
BAD_PADDINGS = [[], [0], [0, 0], [-1, 0, 0, 0], [0, 0, 0, -HUGE], [HUGE] * 4, [2**63 - 1] * 4]
BAD_POOL_PADDINGS = [[], [0], [0, 0, 0], [2, 0], [0, -1], [HUGE, HUGE]]
BAD_SIZES = [[], [2, 3, 8], [2, 3, 8, 8, 1], [2, 3, 8, 9], [2, 3, -8, 8], [-1, 3, 8, 8], [2, 4, 8, 8]]
BAD_SIZES += [[HUGE] * 4, [0] * 4]
BAD_WEIGHT_SIZES = [[], [6, 3, 3], [6, 3, 3, 4], [6, 3, 0, 3], [-6, 3, 3, 3], [5, 3, 3, 3], [6, 3, HUGE, HUGE], [0] * 4]
BAD_TENSORS = [X(8), X(3, 8, 8), X(1, 2, 3, 8, 8), X(2, 3, 1, 1), X(), X(2, 3, 0, 8)]
OTHER_KINDS = [X4(dtype=torch.double), X4(dtype=torch.bool), X4(dtype=torch.complex64), X4().to_sparse()]


def bad_values(operator, argument):
    conv = operator.startswith("conv2d")
    if argument in ("input", "grad_output"):
        other_channels = [X(2, 4, 8, 8)] if argument == "grad_output" or conv else []  # a pool takes any number
        return [*BAD_TENSORS, *other_channels, *OTHER_KINDS[0 if conv else 1 :]]  # and doubles
    if argument == "weight":
        other_sizes = [X4()] if operator == "conv2d_grad_input" else []
        return [t for t in BAD_TENSORS if operator != "conv2d" or t.shape != (2, 3, 1, 1)] + other_sizes + OTHER_KINDS
    if argument in ("bias", "residual", "output") and operator != "conv2d_grad_weight" or argument == "output":
        return [X(5), X(6, 1), X(2, 6, 6, 5), X(), X(6, dtype=torch.double), X(2, 6, 6, 6, dtype=torch.double)]
    if argument == "offsets":
        return [OFFSETS[0], OFFSETS[:1], OFFSETS[..., :3], *(OFFSETS.to(t) for t in (torch.int16, torch.int64))]
    if argument == "padding":
        return BAD_PADDINGS if conv else BAD_POOL_PADDINGS
    if argument in ("stride", "dilation", "kernel_size"):
        values = BAD_LISTS if argument != "kernel_size" else [*BAD_LISTS, [9, 9], [2**31, 2**31]]
        return values
    if argument == "input_size":
        return BAD_SIZES if conv else [size for size in BAD_SIZES if size != [2, 3, 8, 9]]  # as many windows
    if argument == "weight_size":
        return BAD_WEIGHT_SIZES
    if argument == "groups":
        return [0, -1, 2, 3, HUGE, -HUGE]
    if argument in ("activation", "algorithm", "accuracy"):
        return ["", "nosuch", "\0"]
    if argument == "divisor_override":
        return [0]
    return []


MALFORMED = [
    pytest.param(operator, argument, i, id=f"{operator} {argument} {i}")
    for operator, arguments in VALID.items()
    for argument in arguments
    for i in range(len(bad_values(operator, argument)))
]


@pytest.mark.parametrize("operator", VALID)
def test_raw_operator(operator):
    getattr(OPS, operator)(**VALID[operator])


@pytest.mark.parametrize("operator, argument, i", MALFORMED)
def test_raw_operator_refuses(operator, argument, i):
    bad = bad_values(operator, argument)[i]
    with pytest.raises((RuntimeError, ValueError, IndexError)):
        getattr(OPS, operator)(**dict(VALID[operator], **{argument: bad}))


def test_raw_operators_with_an_activation_need_the_output():
    for operator in ("conv2d_grad_input", "conv2d_grad_weight"):
        with pytest.raises(ValueError, match="expected output with an activation, and only then"):
            getattr(OPS, operator)(**dict(VALID[operator], activation="relu"))
        with pytest.raises(ValueError, match="expected output with an activation, and only then"):
            getattr(OPS, operator)(**dict(VALID[operator], output=X(2, 6, 6, 6)))


@pytest.mark.parametrize(
    "kernel, stride, dtype",
    [((3, 2), (2, 1), torch.uint8), ((16, 16), (3, 2), torch.int16), ((256, 256), (50, 70), torch.int32)],
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_offsets_of_any_content_stay_inside(kernel, stride, dtype, channels_last):
    # The input is a window of a larger tensor of NaN: whatever is read beside it shows.
    h, w = kernel[0] + 3, kernel[1] + 2
    around = torch.full((4, 5, h + 8, w + 8), float("nan"))
    if channels_last:
        around = around.contiguous(memory_format=torch.channels_last)
    x = around[1:3, 1:4, 4:-4, 4:-4]
    x.copy_(torch.arange(1.0, x.numel() + 1).view(x.shape))
    conf = dict(
        kernel_size=kernel, stride=stride, padding=[k // 2 for k in kernel], dilation=[1, 1], ceil_mode=True
    )
    y, right = OPS.max_pool2d(x, **conf)
    assert right.dtype is dtype
    generator = torch.Generator().manual_seed(0)
    bits = 8 * right.element_size()
    values = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), y.shape, generator=generator)
    offsets = values.to(dtype if dtype is not torch.uint8 else torch.int8).view(dtype)
    gathered = OPS.max_pool2d_gather(x, offsets, **conf)
    assert not gathered.isnan().any()
    back = OPS.max_pool2d_backward(torch.ones_like(y), offsets, x.shape, **conf)
    # Each output gave its one to an element of the input, or to none.
    assert back.min() >= 0 and back.sum() == (gathered != 0).sum()
    indices = OPS.max_pool2d_indices(offsets, x.shape, **conf)
    assert indices.min() >= -1 and indices.max() < h * w
    plane = x.reshape(2, 3, -1).gather(2, indices.clamp(min=0).flatten(2)).view(y.shape)
    assert torch.equal(torch.where(indices < 0, 0, plane), gathered)


# --- no extension --------------------------------------------------------------------------------------------


def test_missing_extension_raises_with_the_cure(tmp_path):
    """Import and doctor work; the first use of an operator raises. A detour through torch would print a shape."""
    package = Path(fastconv.__file__).parent
    shutil.copytree(package, tmp_path / "fastconv", ignore=shutil.ignore_patterns("_C*", "__pycache__"))
    program = """
import torch, fastconv, fastconv.functional as FF
assert isinstance(str(fastconv.doctor()), str)
x, w = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 3, 3)
for call in (
    lambda: FF.conv2d(x, w),
    lambda: FF.max_pool2d(x, 2),
    lambda: FF.avg_pool2d(x, 2),
    lambda: fastconv.nn.Conv2d(1, 1, 3)(x),
    lambda: fastconv.algorithm("direct"),
    lambda: fastconv.explain(""),
):
    try:
        print("no error:", call())
    except fastconv.ExtensionError as error:
        assert "build" in str(error), error
        print("ExtensionError")
"""
    environment = dict(os.environ, PYTHONPATH=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[-7:] == ["ExtensionError"] * 6 + [""]
