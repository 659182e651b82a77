"""Bad arguments: torch's exception type and message, compared with the installed torch."""

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

TRANSPOSED = {
    "input 5d": ((X(1, 3, 1, 8, 8), W4()), {}),
    "input 2d": ((X(3, 8), X(3, 6, 3, 3)), {}),
    "weight 3d": ((X(2, 6, 8, 8), X(6, 3, 3)), {}),
    "in ch mismatch": ((X4(), W4()), {}),
    "in ch mismatch empty batch": ((X(0, 4, 8, 8), W4()), {}),
    "groups not div in": ((X(2, 5, 8, 8), X(5, 3, 3, 3)), dict(groups=2)),
    "groups 0": ((X(2, 6, 8, 8), W4()), dict(groups=0)),
    "bias size": ((X(2, 6, 8, 8), W4(), X(5)), {}),
    "bias 2d": ((X(2, 6, 8, 8), W4(), X(3, 1)), {}),
    "neg pad": ((X(2, 6, 8, 8), W4()), dict(padding=-1)),
    "stride 0": ((X(2, 6, 8, 8), W4()), dict(stride=0)),
    "stride neg": ((X(2, 6, 8, 8), W4()), dict(stride=-1)),
    "dilation 0": ((X(2, 6, 8, 8), W4()), dict(dilation=0)),
    "output_padding 1": ((X(2, 6, 8, 8), W4()), dict(output_padding=1)),
    "output_padding neg": ((X(2, 6, 8, 8), W4()), dict(output_padding=-1, stride=2)),
    "output_padding below dilation": ((X(2, 6, 8, 8), W4()), dict(output_padding=1, dilation=2)),
    "output_padding 3 list": ((X(2, 6, 8, 8), W4()), dict(output_padding=[1, 1, 1], stride=2)),
    "stride 3 list": ((X(2, 6, 8, 8), W4()), dict(stride=[1, 1, 1])),
    "too small": ((X(2, 6, 1, 1), W4()), dict(padding=2)),
    "padding same": ((X(2, 6, 8, 8), W4()), dict(padding="same")),
    "float stride": ((X(2, 6, 8, 8), W4()), dict(stride=1.0)),
    "stride bool": ((X(2, 6, 8, 8), W4()), dict(stride=True)),
    "empty batch": ((X(0, 6, 8, 8), W4(), X(3)), {}),
    "zero in ch": ((X(2, 0, 8, 8), X(0, 3, 3, 3)), {}),
    "zero out ch": ((X(2, 6, 8, 8), X(6, 0, 3, 3)), {}),
    "zero spatial": ((X(2, 6, 0, 8), W4()), {}),
    "zero kernel": ((X(2, 6, 8, 8), X(6, 3, 0, 3)), {}),
    "int32": ((X(2, 6, 8, 8, dtype=torch.int32), W4(dtype=torch.int32)), {}),
    "int64": ((X(2, 6, 8, 8, dtype=torch.int64), W4(dtype=torch.int64)), {}),
    "bool": ((X(2, 6, 8, 8, dtype=torch.bool), W4(dtype=torch.bool)), {}),
    "mixed": ((X(2, 6, 8, 8), W4(dtype=torch.double)), {}),
    "None weight": ((X(2, 6, 8, 8), None), {}),
    "numpy": ((numpy.zeros((2, 6, 8, 8), numpy.float32), W4()), {}),
    "unbatched": ((X(6, 8, 8), W4()), dict(stride=2)),
}

ADAPTIVE = {
    "2d in": ((X(8, 8), 2), {}),
    "5d in": ((X(1, 1, 3, 8, 8), 2), {}),
    "3 list": ((X4(), [2, 2, 2]), {}),
    "4 list": ((X4(), [2, 2, 2, 2]), {}),
    "1 list": ((X4(), [2]), {}),
    "empty list": ((X4(), []), {}),
    "None": ((X4(), None), {}),
    "None, 3": ((X4(), (None, 3)), {}),
    "neg": ((X4(), -1), {}),
    "0": ((X4(), 0), {}),
    "float": ((X4(), 2.0), {}),
    "str": ((X4(), "2"), {}),
    "huge": ((X4(), 2**62), {}),
    "zero channels": ((X(2, 0, 8, 8), 2), {}),
    "zero batch": ((X(0, 3, 8, 8), 2), {}),
    "zero spatial": ((X(2, 3, 0, 8), 2), {}),
    "int64": ((X4(dtype=torch.int64), 2), {}),
    "uint8": ((X4(dtype=torch.uint8), 3), {}),
    "bool": ((X4(dtype=torch.bool), 2), {}),
    "complex": ((X4(dtype=torch.complex64), 2), {}),
    "half": ((X4(dtype=torch.half), 4), {}),
    "unbatched": ((X(3, 8, 8), 4), {}),
    "numpy": ((numpy.zeros((2, 3, 8, 8), numpy.float32), 2), {}),
}

LP = {
    name: ((args[0], 2, *args[1:]), kwargs)
    for name, (args, kwargs) in MAX.items()
    if not kwargs.keys() & {"padding", "dilation", "return_indices"}
    and "max" not in name
    and name not in ("int64", "bool")
} | {
    "norm 0": ((X4(), 0, 2), {}),
    "norm 0 and a bad window": ((X4(), 0, 9), {}),
    "norm inf": ((X4(), float("inf"), 2), {}),
    "norm str": ((X4(), "2", 2), {}),
    "norm None": ((X4(), None, 2), {}),
}

CASES = [
    pytest.param(function, *case, id=f"{function}: {name}")
    for function, cases in (  # fmt: skip
        ("conv2d", CONV), ("max_pool2d", MAX), ("avg_pool2d", AVG),
        ("conv_transpose2d", TRANSPOSED), ("adaptive_avg_pool2d", ADAPTIVE), ("adaptive_max_pool2d", ADAPTIVE),
        ("lp_pool2d", LP),
    )
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
            # PyTorch's powers and roots depend on its processor by an ulp or two.
            close = 2.4e-7 if name == "lp_pool2d" and mine.is_floating_point() else 0
            torch.testing.assert_close(mine, reference, rtol=close, atol=0, equal_nan=True)


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
