"""Convolution and pooling with torch.nn.functional's signatures, run by fastconv's kernels.

Bad arguments raise what torch raises: a call that fails is handed to torch's own function, whose exception is then
the one that the caller sees. A call never falls back: if torch would accept it, fastconv's own error stands.
"""

import inspect

import torch
import torch.nn.functional as F

from . import accuracy, autograd, ops, selection
from ._extension import ExtensionError

__all__ = ["conv2d", "conv2d_relu", "max_pool2d", "avg_pool2d"]

_ACTIVATIONS = {None: "none", "relu": "relu"}


def conv2d(
    input,
    weight,
    bias=None,
    stride=1,
    padding=0,
    dilation=1,
    groups=1,
    *,
    activation=None,
    residual=None,
    algorithm="auto",
):
    """2-D convolution with an optional residual and activation: act(conv(input, weight) + bias + residual).

    input (N, C, H, W) or (C, H, W), weight (K, C / groups, R, S), bias (K,), residual of the output's size
    -> (N, K, P, Q) or (K, P, Q), with P = (H + top + bottom - dilation * (R - 1) - 1) // stride + 1, Q alike.
    All dtypes are equal: float32, float64, float16, bfloat16, or integers; reduced ones accumulate in float32.

    Args:
        stride, dilation: an int, or height and width.
        padding: an int, height and width, 'valid' (none) or 'same' (output of the input's size, for stride 1; the
            odd row or column of an even window goes to the bottom or right, as in torch).
        activation: None or 'relu'. The backward of a ReLU reads the output only, so nothing more is saved for it.
        algorithm: "auto", or the name of a row of the algorithm table, for this call and its backward; it wins over
            `fastconv.algorithm(...)`.

    The output is channels_last if the input or the weight is. Under autocast all tensors but float64 ones are cast,
    as torch does. Differentiable any number of times, in reverse and forward mode, and by torch.func.

    Raises:
        What torch.nn.functional.conv2d raises for the same bad argument;
        NotImplementedError if no algorithm, or not the forced one, takes the problem (with every row's reason), and
        for complex tensors;
        ValueError for an unknown activation or algorithm; ExtensionError if the extension is not built.
    """
    if torch.compiler.is_compiling():
        return _conv2d(input, weight, bias, stride, padding, dilation, groups, activation, residual, algorithm)
    try:
        output = ops.functional_conv2d(
            input, weight, bias, residual, stride, padding, dilation, groups, activation,
            selection.resolve(algorithm), accuracy.current,
        )  # fmt: skip
        if output is not None:
            return output
        return _conv2d(input, weight, bias, stride, padding, dilation, groups, activation, residual, algorithm)
    except _ARGUMENT_ERRORS as error:
        given = dict(stride=stride, padding=padding, dilation=dilation, groups=groups)
        required = (input, weight) if bias is None else (input, weight, bias)
        raise _as_torch(error, conv2d, F.conv2d, required, given) from None


def conv2d_relu(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, *, algorithm="auto"):
    """relu(conv2d(...)) in one pass: the arguments, shapes and errors of `conv2d`. NaN stays NaN, as in torch.relu."""
    return conv2d(input, weight, bias, stride, padding, dilation, groups, activation="relu", algorithm=algorithm)


def max_pool2d(
    input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False
):
    """Largest element of each window. NaN wins; of equal ones, the first in row-major order.

    input (N, C, H, W) or (C, H, W) -> (N, C, P, Q) or (C, P, Q), in the input's memory format; with `return_indices`
    also their int64 positions in the (H, W) plane, as torch counts them. P = (H + 2 * padding - dilation * (kernel -
    1) - 1) / stride + 1, rounded down, or up with `ceil_mode` unless that last window would start in the padding.
    `stride` None or [] means `kernel_size`. For backward, one byte per output is saved up to windows of 255.

    Differs from torch where torch is wrong: a window wholly in padding (possible with dilation > 1) yields -inf as
    there, but its index is -1 and its gradient goes nowhere. torch's index points past the plane, and its backward
    then writes out of bounds.

    Raises what torch.nn.functional.max_pool2d raises for the same bad argument.
    """
    if torch.compiler.is_compiling():
        return _max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    try:
        if not return_indices:
            output = ops.functional_max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode)
            if output is not None:
                return output
        return _max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    except _ARGUMENT_ERRORS as error:
        given = dict(
            stride=stride, padding=padding, dilation=dilation, ceil_mode=ceil_mode, return_indices=return_indices
        )
        raise _as_torch(error, max_pool2d, F.max_pool2d, (input, kernel_size), given) from None


def avg_pool2d(
    input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None
):
    """Mean of each window: input (N, C, H, W) or (C, H, W) -> (N, C, P, Q) or (C, P, Q), sizes as of `max_pool2d`.

    The divisor is the window's size inside the padded input, or inside the input proper if not `count_include_pad`,
    or `divisor_override`. int64 is divided towards zero, as torch does; other integers are refused.

    Raises what torch.nn.functional.avg_pool2d raises for the same bad argument.
    """
    if torch.compiler.is_compiling():
        return _avg_pool2d(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    try:
        output = ops.functional_avg_pool2d(
            input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
        )
        if output is not None:
            return output
        return _avg_pool2d(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    except _ARGUMENT_ERRORS as error:
        given = dict(
            stride=stride,
            padding=padding,
            ceil_mode=ceil_mode,
            count_include_pad=count_include_pad,
            divisor_override=divisor_override,
        )
        raise _as_torch(error, avg_pool2d, F.avg_pool2d, (input, kernel_size), given) from None


# --- errors ------------------------------------------------------------------------------------------------

_ARGUMENT_ERRORS = (RuntimeError, TypeError, ValueError, IndexError, AttributeError)


def _as_torch(error, ours, theirs, required, given):
    """What the caller shall see instead of `error`: torch's exception for the same arguments, if it has one.

    Messages that begin with "fastconv: " were chosen over torch's and stay. torch's type errors list the arguments that
    it was given, so defaults are not passed.
    """
    if isinstance(error, ExtensionError) or str(error).startswith("fastconv: "):
        return error
    defaults = inspect.signature(ours).parameters
    given = {name: value for name, value in given.items() if value is not defaults[name].default}
    try:
        with torch.no_grad():
            theirs(*required, **given)
    except Exception as reworded:
        return reworded.with_traceback(None)
    return error


# --- arguments ---------------------------------------------------------------------------------------------


def _pair(value, name):
    """Height and width. One value, in a list or not, is both."""
    if isinstance(value, (tuple, list)):
        if len(value) == 2:
            return list(value)
        if len(value) == 1:
            return [value[0], value[0]]
        raise ValueError(f"expected {name} to be a single integer value or a list of 2 values, but got {value}")
    if isinstance(value, bool):
        raise TypeError(f"expected {name} to be an integer, but got {value}")
    return [value, value]


def _sides(padding, weight, stride, dilation):
    """Padding at the top, left, bottom and right."""
    if isinstance(padding, str):
        if padding == "valid":
            return [0, 0, 0, 0]
        if padding != "same":
            raise ValueError(f"Invalid padding string: '{padding}'")
        if stride[0] != 1 or stride[1] != 1:
            raise ValueError("padding='same' is not supported for strided convolutions")
        height, width = (dilation[i] * (weight.shape[2 + i] - 1) for i in (0, 1))
        return [height // 2, width // 2, height - height // 2, width - width // 2]
    height, width = _pair(padding, "padding")
    return [height, width, height, width]


def _autocast(*tensors):
    """The tensors in autocast's dtype, if it is on for their device: all floating-point ones but float64."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(
        t.to(dtype) if t is not None and t.is_floating_point() and t.dtype is not torch.float64 else t
        for t in tensors
    )


def _conv2d(input, weight, bias, stride, padding, dilation, groups, activation, residual, algorithm):
    if activation not in _ACTIVATIONS:
        raise ValueError(f"fastconv: unknown activation {activation!r}; known are: None, 'relu'")
    algorithm = selection.resolve(selection.check_algorithm(algorithm))
    stride = _pair(stride, "stride")
    dilation = _pair(dilation, "dilation")
    padding = _sides(padding, weight, stride, dilation)
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        input, weight, bias, residual = _autocast(input, weight, bias, residual)
    single = input.dim() == 3
    if single:
        input = input.unsqueeze(0)
        residual = residual if residual is None else residual.unsqueeze(0)
    operator = ops.conv2d if torch.compiler.is_compiling() else autograd.conv2d
    output = operator(
        input,
        weight,
        bias,
        residual,
        stride,
        padding,
        dilation,
        groups,
        _ACTIVATIONS[activation],
        algorithm,
        accuracy.current,
    )
    return output.squeeze(0) if single else output


def _window(kernel_size, stride, padding):
    kernel_size = _pair(kernel_size, "kernel_size")
    no_stride = stride is None or (isinstance(stride, (tuple, list)) and len(stride) == 0)
    return kernel_size, list(kernel_size) if no_stride else _pair(stride, "stride"), _pair(padding, "padding")


def _max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices):
    kernel_size, stride, padding = _window(kernel_size, stride, padding)
    conf = (kernel_size, stride, padding, _pair(dilation, "dilation"), ceil_mode)
    single = input.dim() == 3
    if single:
        input = input.unsqueeze(0)
    compiling = torch.compiler.is_compiling()
    if return_indices or _may_differentiate(input):
        output, offsets = (ops.max_pool2d if compiling else autograd.max_pool)(input, *conf)
    else:
        output = ops.max_pool2d_values(input, *conf)
    if single:
        output = output.squeeze(0)
    if not return_indices:
        return output
    indices = (ops.max_pool2d_indices if compiling else autograd.max_pool_indices)(offsets, input.shape, *conf)
    return output, indices.squeeze(0) if single else indices


def _may_differentiate(input):
    return (
        (input.requires_grad and torch.is_grad_enabled())
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
    )


def _avg_pool2d(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override):
    kernel_size, stride, padding = _window(kernel_size, stride, padding)
    single = input.dim() == 3
    if single:
        input = input.unsqueeze(0)
    operator = ops.avg_pool2d if torch.compiler.is_compiling() else autograd.avg_pool
    output = operator(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    return output.squeeze(0) if single else output
