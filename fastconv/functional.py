"""Convolution and pooling with torch.nn.functional's signatures, run by fastconv's kernels.

Bad arguments raise what torch raises: a call that fails is handed to torch's own function, whose exception is then
the one that the caller sees. A call never falls back: if torch would accept it, fastconv's own error stands.
"""

import torch
import torch.nn.functional as F

from . import _activations as activations
from . import _pool_autograd as pools
from . import accuracy, autograd, ops, selection
from ._arguments import (
    ARGUMENT_ERRORS,
    as_torch,
    autocast,
    may_differentiate,
    output_size_of,
    pair,
    sides,
    window,
)

__all__ = [
    "conv2d",
    "conv2d_relu",
    "conv2d_max_pool2d",
    "conv_transpose2d",
    "max_pool2d",
    "avg_pool2d",
    "lp_pool2d",
    "adaptive_max_pool2d",
    "adaptive_avg_pool2d",
]


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
        activation: None, or one word: 'relu', 'leaky_relu', 'relu6', 'elu', 'sigmoid', 'tanh', 'silu', 'gelu',
            'hardswish', computed as torch.nn.functional does; 'leaky_relu:0.2' has another slope than 0.01, 'elu:0.5'
            another alpha than 1 (finite, at least 0). Backward reads the output only and saves nothing more. For silu,
            gelu and hardswish it reads their input: where a gradient is wanted, they run apart, as in torch; where not,
            an infinity gives the limit, and not torch's NaN.
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
    except ARGUMENT_ERRORS as error:
        raise _conv2d_error(error, input, weight, bias, stride, padding, dilation, groups) from None


def conv2d_batch_norm(
    input, weight, bias, residual, norm, stride, padding, dilation, groups, activation, algorithm
):
    """act(norm(conv(input, weight, bias)) + residual) for a BatchNorm2d `norm` in eval mode, where nobody wants a
    derivative: the convolution scales and shifts its sums. For converted modules. input (N, C, H, W); arguments and
    errors as in `conv2d`.
    """
    statistics = norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps
    try:
        if not torch.compiler.is_compiling():
            output = ops.functional_conv2d_batch_norm(
                input, weight, bias, residual, *statistics, stride, padding, dilation, groups, activation,
                selection.resolve(algorithm), accuracy.current,
            )  # fmt: skip
            if output is not None:
                return output
        tensors, geometry, how = _conv2d_arguments(
            input, weight, bias, residual, stride, padding, dilation, groups, activation, algorithm
        )
        return ops.conv2d_batch_norm(*tensors, *statistics, *geometry, *how)
    except ARGUMENT_ERRORS as error:
        raise _conv2d_error(error, input, weight, bias, stride, padding, dilation, groups) from None


def conv2d_relu(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, *, algorithm="auto"):
    """relu(conv2d(...)) in one pass: the arguments, shapes and errors of `conv2d`. NaN stays NaN, as in torch.relu."""
    return conv2d(input, weight, bias, stride, padding, dilation, groups, activation="relu", algorithm=algorithm)


def conv2d_max_pool2d(
    input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, *, activation=None, algorithm="auto"
):
    """max_pool2d(conv2d(...), 2): a convolution, its activation, and the largest of each 2x2 outputs.

    Arguments as of `conv2d` -> (N, K, P // 2, Q // 2), or without N. Where nobody wants a derivative, and a kernel (row
    `winograd` on the CPU) is predicted to be faster so, one kernel does both and the outputs between are never stored;
    `fastconv.explain` tells. Otherwise the two run one after the other.

    Raises what `conv2d` and `max_pool2d` raise.
    """
    args = input, weight, bias, stride, padding, dilation, groups
    if torch.compiler.is_compiling():
        if input.dim() == 4 and not may_differentiate(input, weight, bias):
            return _conv2d_max_pool2d(*args, activation, algorithm)
        return max_pool2d(conv2d(*args, activation=activation, algorithm=algorithm), 2)
    try:
        output = ops.functional_conv2d_max_pool2d(*args, activation, selection.resolve(algorithm), accuracy.current)
        if output is not None:
            return output
        if input.dim() == 4 and not may_differentiate(input, weight, bias):
            return _conv2d_max_pool2d(*args, activation, algorithm)
    except ARGUMENT_ERRORS:
        pass  # one of the two says what is wrong
    return max_pool2d(conv2d(*args, activation=activation, algorithm=algorithm), 2)


def conv_transpose2d(
    input,
    weight,
    bias=None,
    stride=1,
    padding=0,
    output_padding=0,
    groups=1,
    dilation=1,
    *,
    algorithm="auto",
):
    """2-D transposed convolution: the gradient of `conv2d` with respect to its input, plus a bias.

    input (N, C, H, W) or (C, H, W), weight (C, K / groups, R, S), bias (K,) -> (N, K, P, Q) or (K, P, Q), with
    P = (H - 1) * stride - 2 * padding + dilation * (R - 1) + output_padding + 1, Q alike.

    `algorithm`, memory format, autocast and derivatives are as of `conv2d`. An output_padding that exceeds padding +
    stride - 1 (possible with dilation) must leave some of the convolution in the output.

    Raises what torch.nn.functional.conv_transpose2d raises for the same bad argument, and as `conv2d` besides.
    """
    args = input, weight, bias, stride, padding, output_padding, groups, dilation
    if torch.compiler.is_compiling():
        return _conv_transpose2d(*args, algorithm)
    try:
        output = ops.functional_conv_transpose2d(*args, selection.resolve(algorithm), accuracy.current)
        return _conv_transpose2d(*args, algorithm) if output is None else output
    except ARGUMENT_ERRORS as error:
        given = dict(
            stride=stride, padding=padding, output_padding=output_padding, groups=groups, dilation=dilation
        )
        required = (input, weight) if bias is None else (input, weight, bias)
        raise as_torch(error, conv_transpose2d, F.conv_transpose2d, required, given) from None


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
    except ARGUMENT_ERRORS as error:
        given = dict(
            stride=stride, padding=padding, dilation=dilation, ceil_mode=ceil_mode, return_indices=return_indices
        )
        raise as_torch(error, max_pool2d, F.max_pool2d, (input, kernel_size), given) from None


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
    except ARGUMENT_ERRORS as error:
        given = dict(
            stride=stride,
            padding=padding,
            ceil_mode=ceil_mode,
            count_include_pad=count_include_pad,
            divisor_override=divisor_override,
        )
        raise as_torch(error, avg_pool2d, F.avg_pool2d, (input, kernel_size), given) from None


def lp_pool2d(input, norm_type, kernel_size, stride=None, ceil_mode=False):
    """(sum of x ** norm_type) ** (1 / norm_type) over each window: input (N, C, H, W) or (C, H, W), sizes as of
    `max_pool2d`. A window that reaches over the border (with `ceil_mode`) is scaled up to the size of a whole one.

    As in torch, x is not made absolute: an odd or fractional norm of negative numbers may be NaN. inf and -inf are the
    largest and smallest absolute value. Where an output is 0, its gradient is 0 (norm_type 1 excepted); torch says so
    too, but sends NaN.

    Raises what torch.nn.functional.lp_pool2d raises for the same bad argument, and ValueError for a norm of NaN.
    """
    if torch.compiler.is_compiling():
        return _lp_pool2d(input, norm_type, kernel_size, stride, ceil_mode)
    try:
        output = ops.functional_lp_pool2d(input, norm_type, kernel_size, stride, ceil_mode)
        return _lp_pool2d(input, norm_type, kernel_size, stride, ceil_mode) if output is None else output
    except ARGUMENT_ERRORS as error:
        given = dict(stride=stride, ceil_mode=ceil_mode)
        raise as_torch(error, lp_pool2d, F.lp_pool2d, (input, norm_type, kernel_size), given) from None


def adaptive_max_pool2d(input, output_size, return_indices=False):
    """Largest element of each of P x Q windows that cover the input: (N, C, H, W) or (C, H, W) -> (N, C, P, Q) or
    (C, P, Q), in the input's memory format; with `return_indices` also their int64 positions in the (H, W) plane.

    Window i along an axis of H elements covers floor(i * H / P) up to ceil((i + 1) * H / P). `output_size` is P = Q,
    or a pair of which None stands for the input's size.

    Raises what torch.nn.functional.adaptive_max_pool2d raises for the same bad argument.
    """
    if torch.compiler.is_compiling():
        return _adaptive_max_pool2d(input, output_size, return_indices)
    try:
        output = None if return_indices else ops.functional_adaptive_max_pool2d(input, output_size)
        return _adaptive_max_pool2d(input, output_size, return_indices) if output is None else output
    except ARGUMENT_ERRORS as error:
        given = dict(return_indices=return_indices)
        raise as_torch(error, adaptive_max_pool2d, F.adaptive_max_pool2d, (input, output_size), given) from None


def adaptive_avg_pool2d(input, output_size):
    """Mean of each of P x Q windows that cover the input; windows, sizes and `output_size` as of `adaptive_max_pool2d`.

    Raises what torch.nn.functional.adaptive_avg_pool2d raises for the same bad argument.
    """
    if torch.compiler.is_compiling():
        return _adaptive_avg_pool2d(input, output_size)
    try:
        output = ops.functional_adaptive_avg_pool2d(input, output_size)
        return _adaptive_avg_pool2d(input, output_size) if output is None else output
    except ARGUMENT_ERRORS as error:
        raise as_torch(error, adaptive_avg_pool2d, F.adaptive_avg_pool2d, (input, output_size), {}) from None


# --- the operators, or their Functions where a derivative may be wanted ----------------------------------------


def _conv2d_error(error, input, weight, bias, stride, padding, dilation, groups):
    given = dict(stride=stride, padding=padding, dilation=dilation, groups=groups)
    required = (input, weight) if bias is None else (input, weight, bias)
    return as_torch(error, conv2d, F.conv2d, required, given)


def _conv2d_arguments(input, weight, bias, residual, stride, padding, dilation, groups, activation, algorithm):
    """The operator's: (input, weight, bias, residual), (stride ... groups), (activation, algorithm, accuracy)."""
    activation = activations.operator_word(activation)
    algorithm = selection.resolve(selection.check_algorithm(algorithm))
    stride = pair(stride, "stride")
    dilation = pair(dilation, "dilation")
    padding = sides(padding, weight, stride, dilation)
    tensors = input, weight, bias, residual
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        tensors = autocast(*tensors)
    return tensors, (stride, padding, dilation, groups), (activation, algorithm, accuracy.current)


def _conv2d_max_pool2d(input, weight, bias, stride, padding, dilation, groups, activation, algorithm):
    (input, weight, bias, _), geometry, how = _conv2d_arguments(
        input, weight, bias, None, stride, padding, dilation, groups, activation, algorithm
    )
    return ops.conv2d_max_pool2d(input, weight, bias, *geometry, *how)


def _conv2d(input, weight, bias, stride, padding, dilation, groups, activation, residual, algorithm):
    (input, weight, bias, residual), geometry, (activation, *how) = _conv2d_arguments(
        input, weight, bias, residual, stride, padding, dilation, groups, activation, algorithm
    )
    single = input.dim() == 3
    if single:
        input = input.unsqueeze(0)
        residual = residual if residual is None else residual.unsqueeze(0)
    apart = activations.needs_input(activation) and may_differentiate(input, weight, bias, residual)
    operator = ops.conv2d if torch.compiler.is_compiling() else autograd.conv2d
    output = operator(input, weight, bias, residual, *geometry, "none" if apart else activation, *how)
    if apart:
        output = activations.apply(activation, output)
    return output.squeeze(0) if single else output


def _conv_transpose2d(input, weight, bias, stride, padding, output_padding, groups, dilation, algorithm):
    algorithm = selection.resolve(selection.check_algorithm(algorithm))
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        input, weight, bias = autocast(input, weight, bias)
    single = input.dim() == 3
    operator = ops.conv_transpose2d if torch.compiler.is_compiling() else autograd.conv_transpose2d
    output = operator(
        input.unsqueeze(0) if single else input,
        weight,
        bias,
        pair(stride, "stride"),
        pair(padding, "padding"),
        pair(output_padding, "output_padding"),
        groups,
        pair(dilation, "dilation"),
        algorithm,
        accuracy.current,
    )
    return output.squeeze(0) if single else output


def _max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices):
    conf = (*window(kernel_size, stride, padding), pair(dilation, "dilation"), ceil_mode)
    return _pool_max("max_pool2d", pools.max_pool, input, conf, return_indices)


def _adaptive_max_pool2d(input, output_size, return_indices):
    conf = (output_size_of(output_size, input.shape),)
    return _pool_max("adaptive_max_pool2d", pools.adaptive_max_pool, input, conf, return_indices)


def _pool_max(name, functions, input, conf, return_indices):
    single = input.dim() == 3
    if single:
        input = input.unsqueeze(0)
    compiling = torch.compiler.is_compiling()
    if return_indices or may_differentiate(input):
        output, offsets = (getattr(ops, name) if compiling else functions.pool)(input, *conf)
    else:
        output = getattr(ops, f"{name}_values")(input, *conf)
    if single:
        output = output.squeeze(0)
    if not return_indices:
        return output
    indices = (getattr(ops, f"{name}_indices") if compiling else functions.indices)(offsets, input.shape, *conf)
    return output, indices.squeeze(0) if single else indices


def _avg_pool2d(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override):
    operator = ops.avg_pool2d if torch.compiler.is_compiling() else pools.avg_pool.pool
    conf = (*window(kernel_size, stride, padding), ceil_mode, count_include_pad, divisor_override)
    return _batched(operator, input, *conf)


def _adaptive_avg_pool2d(input, output_size):
    operator = ops.adaptive_avg_pool2d if torch.compiler.is_compiling() else pools.adaptive_avg_pool.pool
    return _batched(operator, input, output_size_of(output_size, input.shape))


def _lp_pool2d(input, norm_type, kernel_size, stride, ceil_mode):
    if not isinstance(norm_type, (int, float)):
        raise TypeError(f"norm_type must be a number, but got {type(norm_type).__name__}")
    if isinstance(kernel_size, (tuple, list)) and len(kernel_size) != 2:
        raise ValueError(f"expected kernel_size to be an integer or a list of 2, but got {kernel_size}")
    if norm_type in (float("inf"), -float("inf")):
        sign = 1 if norm_type > 0 else -1
        return sign * max_pool2d(sign * input.abs(), kernel_size, stride, ceil_mode=ceil_mode)
    if norm_type == 0:
        raise ValueError("norm_type should not be zero")  # what torch raises comes from its own arithmetic
    operator = ops.lp_pool2d if torch.compiler.is_compiling() else pools.lp_pool
    kernel_size, stride, _ = window(kernel_size, stride, 0)
    return _batched(operator, input, float(norm_type), kernel_size, stride, ceil_mode)


def _batched(operator, input, *conf):
    if input.dim() == 3:
        return operator(input.unsqueeze(0), *conf).squeeze(0)
    return operator(input, *conf)
