"""Arguments in the forms that torch.nn.functional takes them, and torch's exceptions for bad ones."""

import inspect

import torch

from ._differentiable import transforming
from ._extension import ExtensionError

ARGUMENT_ERRORS = (RuntimeError, TypeError, ValueError, IndexError, AttributeError)


def as_torch(error, ours, theirs, required, given):
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


def pair(value, name):
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


def sides(padding, weight, stride, dilation):
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
    height, width = pair(padding, "padding")
    return [height, width, height, width]


def autocast(*tensors):
    """The tensors in autocast's dtype, if it is on for their device: all floating-point ones but float64."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(
        t.to(dtype) if t is not None and t.is_floating_point() and t.dtype is not torch.float64 else t
        for t in tensors
    )


def window(kernel_size, stride, padding):
    kernel_size = pair(kernel_size, "kernel_size")
    no_stride = stride is None or (isinstance(stride, (tuple, list)) and len(stride) == 0)
    return kernel_size, list(kernel_size) if no_stride else pair(stride, "stride"), pair(padding, "padding")


def output_size_of(value, sizes):
    """Output height and width of an adaptive pool, as torch reads them: None stands for the input's."""
    if not isinstance(value, (tuple, list)):
        return [value, value]
    if len(sizes) <= len(value):
        raise ValueError(f"Input dimension should be at least {len(value) + 1}")
    return [size if given is None else given for given, size in zip(value, sizes[-len(value) :])]


def may_differentiate(*tensors):
    """May somebody want a derivative of what is made of these tensors (or None)?"""
    if transforming():
        return True
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
