"""Shapes without data: what the operators return for fake and meta tensors, and how many FLOPs they are."""

import math

import torch
from torch._prims_common import suggest_memory_format


def _check_list(values, count, name):
    torch._check(len(values) == count, lambda: f"expected {name} to be a list of {count} values, but got {values}")


def _at_least(values, least, message):
    for value in values:
        torch._check(value >= least, lambda: message)


def _window_output(size, before, after, window, stride, dilation):
    return (size + before + after - dilation * (window - 1) - 1) // stride + 1


def _device_of(*tensors):
    devices = [t.device for t in tensors if t is not None]
    return next((d for d in devices if d.type == "meta"), devices[0])


def _empty_like(sizes, like, *others, dtype=None):
    """channels_last if any of the tensors suggests it."""
    tensors = (like, *others)
    last = any(suggest_memory_format(t) is torch.channels_last for t in tensors)
    format = torch.channels_last if last else torch.contiguous_format
    return torch.empty(sizes, dtype=dtype or like.dtype, device=_device_of(*tensors), memory_format=format)


def _check_same(tensor, like, name):
    torch._check(
        tensor.dtype == like.dtype,
        lambda: f"Input type ({like.dtype}) and {name} type ({tensor.dtype}) should be the same",
    )


def _check_sizes(tensor, sizes, name):
    torch._check(
        len(tensor.shape) == len(sizes) and all(a == b for a, b in zip(tensor.shape, sizes)),
        lambda: f"expected {name} of size {list(sizes)}, but got {list(tensor.shape)}",
    )


def _conv_output(x, w, stride, padding, dilation, groups):
    """Output sizes of a convolution of input sizes x with filter sizes w; checks what the kernels check."""
    torch._check(len(x) == 4, lambda: f"Expected 3D (unbatched) or 4D (batched) input to conv2d, but got {list(x)}")
    torch._check(len(w) == 4, lambda: f"expected a weight of 4 dimensions, but got weight of size {list(w)}")
    _check_list(stride, 2, "stride")
    _check_list(dilation, 2, "dilation")
    _check_list(padding, 4, "padding")
    _at_least(padding, 0, "negative padding is not supported")
    _at_least(stride, 1, "non-positive stride is not supported")
    _at_least(dilation, 1, "dilation should be greater than zero")
    torch._check(groups > 0, lambda: "non-positive groups is not supported")
    torch._check(
        w[0] >= groups and w[0] % groups == 0,
        lambda: f"Given groups={groups}, expected weight to be divisible by {groups} at dimension 0: {list(w)}",
    )
    torch._check(
        x[1] == w[1] * groups,
        lambda: f"Given groups={groups}, weight of size {list(w)}, expected input{list(x)} to have {w[1]} x {groups} "
        f"channels, but got {x[1]} channels instead",
    )
    torch._check(
        w[2] > 0 and w[3] > 0,
        lambda: f"fastconv: a kernel of {w[2]} x {w[3]} has no elements: expected weight to be at least 1 x 1 at "
        "dimensions 2 and 3",
    )
    sizes = []
    for i in (0, 1):
        padded = x[2 + i] + padding[i] + padding[2 + i]
        torch._check(
            padded >= dilation[i] * (w[2 + i] - 1) + 1,
            lambda: "Kernel size can't be greater than actual input size",
        )
        torch._check(
            x[2 + i] > 0,
            lambda: f"Only zero batch or zero channel inputs are supported, but got input shape: {list(x)}",
        )
        sizes.append(_window_output(x[2 + i], padding[i], padding[2 + i], w[2 + i], stride[i], dilation[i]))
    no_channels = isinstance(x[1], int) and x[1] == 0  # torch's rule: then the output has none either
    return [x[0], 0 if no_channels else w[0], *sizes]


def conv2d(input, weight, bias, residual, stride, padding, dilation, groups, activation, algorithm, accuracy):
    sizes = _conv_output(input.shape, weight.shape, stride, padding, dilation, groups)
    _check_same(weight, input, "weight")
    if bias is not None:
        _check_same(bias, input, "bias")
        _check_sizes(bias, weight.shape[:1], "bias")
    if residual is not None:
        _check_same(residual, input, "residual")
        _check_sizes(residual, sizes, "residual")
    return _empty_like(sizes, input, weight)


def conv2d_max_pool2d(input, weight, bias, *rest):
    between = conv2d(input, weight, bias, None, *rest)
    return max_pool2d_values(between, (2, 2), (2, 2), (0, 0), (1, 1), False)


def conv2d_batch_norm(input, weight, bias, residual, running_mean, running_var, gamma, beta, eps, *rest):
    vectors = (running_mean, "running_mean"), (running_var, "running_var"), (gamma, "weight"), (beta, "bias")
    for vector, name in vectors:
        if vector is not None:
            _check_sizes(vector, weight.shape[:1], name)
    return conv2d(input, weight, bias, residual, *rest)


def conv2d_grad_input(
    grad_output, weight, output, input_size, stride, padding, dilation, groups, activation, algorithm, accuracy
):
    sizes = _conv_output(input_size, weight.shape, stride, padding, dilation, groups)
    _check_same(weight, grad_output, "weight")
    _check_sizes(grad_output, sizes, "grad_output")
    return _empty_like(input_size, grad_output, weight)


def conv2d_grad_weight(
    input, grad_output, output, weight_size, bias, stride, padding, dilation, groups, activation, algorithm, accuracy
):
    sizes = _conv_output(input.shape, weight_size, stride, padding, dilation, groups)
    _check_same(grad_output, input, "grad_output")
    _check_sizes(grad_output, sizes, "grad_output")
    grad_bias = torch.empty(
        weight_size[0] if bias else 0, dtype=input.dtype, device=_device_of(input, grad_output)
    )
    return _empty_like(weight_size, input, grad_output), grad_bias


def transposed_sizes(x, w, stride, padding, output_padding, groups, dilation):
    """Of a transposed convolution of input sizes x with filter sizes w: (output's sizes, the sizes that the
    convolution reaches, that convolution's padding: top, left, bottom, right).

    The convolution maps our output to our input. Its last window leaves less than a stride of its input over, so that
    more of output_padding, which a dilation allows, is taken from the padding at the bottom and right. Where that does
    not suffice, rows and columns beyond `reached` hold the bias alone.
    """
    sizes, reached, first, last = [x[0], w[1] * groups], [x[0], w[1] * groups], [], []
    for i in (0, 1):
        pad, more, spare = padding[i], output_padding[i], stride[i] - 1
        cut = min(pad, max(0, more - spare))
        size = (x[2 + i] - 1) * stride[i] - 2 * pad + dilation[i] * (w[2 + i] - 1) + more + 1
        sizes.append(size)
        reached.append(size - max(0, more - cut - spare))
        first.append(pad)
        last.append(pad - cut)
    return sizes, reached, [*first, *last]


def conv_transpose2d(
    input, weight, bias, stride, padding, output_padding, groups, dilation, algorithm, accuracy
):
    x, w = input.shape, weight.shape
    torch._check(
        len(x) == 4, lambda: f"Expected 3D (unbatched) or 4D (batched) input to conv_transpose2d, but got {list(x)}"
    )
    torch._check(len(w) == 4, lambda: f"expected a weight of 4 dimensions, but got weight of size {list(w)}")
    for values, least, name in (
        (stride, 1, "stride"),
        (padding, 0, "padding"),
        (output_padding, 0, "output_padding"),
        (dilation, 1, "dilation"),
    ):
        _check_list(values, 2, name)
        _at_least(values, least, f"{name} must be at least {least}, but got {values}")
    for more, step, spread in zip(output_padding, stride, dilation):
        torch._check(
            more < step or more < spread,
            lambda: "output padding must be smaller than either stride or dilation, but got "
            f"output_padding={output_padding}, stride={stride}, dilation={dilation}",
        )
    torch._check(groups > 0, lambda: "non-positive groups is not supported")
    torch._check(
        w[0] == x[1],
        lambda: f"Given transposed=1, weight of size {list(w)}, expected input{list(x)} to have {w[0]} channels",
    )
    _check_same(weight, input, "weight")
    sizes, reached, sides = transposed_sizes(x, w, stride, padding, output_padding, groups, dilation)
    _conv_output(reached, w, stride, sides, dilation, groups)
    if bias is not None:
        _check_same(bias, input, "bias")
        _check_sizes(bias, sizes[1:2], "bias")
    return _empty_like(sizes, input, weight)


def _pool_size(size, window, stride, pad, dilation, ceil_mode):
    if not ceil_mode:
        return _window_output(size, pad, pad, window, stride, dilation)
    # torch's rule: windows start in the input or in the padding before it. A minimum, where torch has a branch, puts no
    # guard on dynamic sizes.
    starts = (size + pad - 1) // stride + 1
    return torch.sym_min(_window_output(size, pad, pad + stride - 1, window, stride, dilation), starts)


def _pool_output(x, kernel_size, stride, padding, dilation, ceil_mode):
    torch._check(
        len(x) == 4, lambda: f"non-empty 3D or 4D (batch mode) tensor expected for input, but got {list(x)}"
    )
    for values, name in ((kernel_size, "kernel_size"), (stride, "stride"), (dilation, "dilation")):
        _check_list(values, 2, name)
        _at_least(values, 1, f"{name} should be greater than zero, but got {values}")
    _check_list(padding, 2, "padding")
    _at_least(padding, 0, f"pad must be non-negative, but got pad: {padding}")
    for pad, window, step in zip(padding, kernel_size, dilation):
        torch._check(
            pad <= (step * (window - 1) + 1) // 2,
            lambda: f"pad should be at most half of effective kernel size, but got pad={pad}, kernel_size={window}",
        )
    _at_least(
        x[1:],
        1,
        f"Expected 3D or 4D (batch mode) tensor with optional 0 dim batch size for input, but got:{list(x)}",
    )
    out = [_pool_size(x[2 + i], kernel_size[i], stride[i], padding[i], dilation[i], ceil_mode) for i in (0, 1)]
    _at_least(out, 1, f"Given input size: {list(x)}. Calculated output size: {out}. Output size is too small")
    return [*x[:2], *out]


def _offsets_dtype(kernel_size):
    positions = kernel_size[0] * kernel_size[1]
    return torch.uint8 if positions <= 255 else torch.int16 if positions <= 65535 else torch.int32


def _adaptive_output(x, output_size, least_channels=1):
    torch._check(len(x) == 4, lambda: f"Expected 3D or 4D tensor, but got {list(x)}")
    _check_list(output_size, 2, "output_size")
    _at_least(output_size, 0, f"elements of output_size must be greater than or equal to 0 but received {output_size}")
    message = f"Expected input to have non-zero size for non-batch dimensions, but input has sizes {list(x)}"
    _at_least(x[1:2], least_channels, message)
    _at_least(x[2:], 1, message)
    return [*x[:2], *output_size]


def _largest_adaptive_window(size, windows):
    """See PoolProblem::largest_adaptive_window. Decides the offsets' type, so dynamic sizes get a guard."""
    if windows == 0:
        return 1
    rest = size % windows
    if rest == 0:
        return size // windows
    return size // windows + (2 if rest > math.gcd(int(rest), int(windows)) else 1)


def _adaptive_offsets_dtype(x, output_size):
    return _offsets_dtype([_largest_adaptive_window(x[2 + i], output_size[i]) for i in (0, 1)])


def max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode):
    sizes = _pool_output(input.shape, kernel_size, stride, padding, dilation, ceil_mode)
    return _empty_like(sizes, input), _empty_like(sizes, input, dtype=_offsets_dtype(kernel_size))


def max_pool2d_values(input, kernel_size, stride, padding, dilation, ceil_mode):
    return _empty_like(_pool_output(input.shape, kernel_size, stride, padding, dilation, ceil_mode), input)


def max_pool2d_backward(grad_output, offsets, input_size, kernel_size, stride, padding, dilation, ceil_mode):
    sizes = _pool_output(input_size, kernel_size, stride, padding, dilation, ceil_mode)
    _check_sizes(grad_output, sizes, "grad_output")
    _check_sizes(offsets, sizes, "offsets")
    return _empty_like(input_size, grad_output)


def max_pool2d_gather(input, offsets, kernel_size, stride, padding, dilation, ceil_mode):
    sizes = _pool_output(input.shape, kernel_size, stride, padding, dilation, ceil_mode)
    _check_sizes(offsets, sizes, "offsets")
    return _empty_like(sizes, input)


def max_pool2d_indices(offsets, input_size, kernel_size, stride, padding, dilation, ceil_mode):
    sizes = _pool_output(input_size, kernel_size, stride, padding, dilation, ceil_mode)
    _check_sizes(offsets, sizes, "offsets")
    return _empty_like(sizes, offsets, dtype=torch.int64)


def avg_pool2d(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override):
    torch._check(divisor_override is None or divisor_override != 0, lambda: "divisor must be not zero")
    return _empty_like(_pool_output(input.shape, kernel_size, stride, padding, (1, 1), ceil_mode), input)


def avg_pool2d_backward(
    grad_output, input_size, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
):
    sizes = _pool_output(input_size, kernel_size, stride, padding, (1, 1), ceil_mode)
    _check_sizes(grad_output, sizes, "grad_output")
    return _empty_like(input_size, grad_output)


def adaptive_max_pool2d(input, output_size):
    sizes = _adaptive_output(input.shape, output_size)
    dtype = _adaptive_offsets_dtype(input.shape, output_size)
    return _empty_like(sizes, input), _empty_like(sizes, input, dtype=dtype)


def adaptive_max_pool2d_values(input, output_size):
    return _empty_like(_adaptive_output(input.shape, output_size), input)


def adaptive_max_pool2d_backward(grad_output, offsets, input_size, output_size):
    sizes = _adaptive_output(input_size, output_size)
    _check_sizes(grad_output, sizes, "grad_output")
    _check_sizes(offsets, sizes, "offsets")
    return _empty_like(input_size, grad_output)


def adaptive_max_pool2d_gather(input, offsets, output_size):
    sizes = _adaptive_output(input.shape, output_size)
    _check_sizes(offsets, sizes, "offsets")
    return _empty_like(sizes, input)


def adaptive_max_pool2d_indices(offsets, input_size, output_size):
    sizes = _adaptive_output(input_size, output_size)
    _check_sizes(offsets, sizes, "offsets")
    return _empty_like(sizes, offsets, dtype=torch.int64)


def adaptive_avg_pool2d(input, output_size):
    return _empty_like(_adaptive_output(input.shape, output_size, least_channels=0), input)


def adaptive_avg_pool2d_backward(grad_output, input_size, output_size):
    _check_sizes(grad_output, _adaptive_output(input_size, output_size, least_channels=0), "grad_output")
    return _empty_like(input_size, grad_output)


def lp_pool2d(input, norm_type, kernel_size, stride, ceil_mode):
    torch._check(norm_type != 0, lambda: "fastconv: norm_type must be a number other than 0")
    return _empty_like(_pool_output(input.shape, kernel_size, stride, (0, 0), (1, 1), ceil_mode), input)


def lp_pool2d_backward(grad_output, input, output, norm_type, kernel_size, stride, ceil_mode):
    sizes = _pool_output(input.shape, kernel_size, stride, (0, 0), (1, 1), ceil_mode)
    _check_sizes(grad_output, sizes, "grad_output")
    _check_sizes(output, sizes, "output")
    return _empty_like(input.shape, grad_output)


FAKES = {
    f.__name__: f
    for f in (
        conv2d,
        conv2d_max_pool2d,
        conv2d_batch_norm,
        conv2d_grad_input,
        conv2d_grad_weight,
        conv_transpose2d,
        max_pool2d,
        max_pool2d_values,
        max_pool2d_backward,
        max_pool2d_gather,
        max_pool2d_indices,
        avg_pool2d,
        avg_pool2d_backward,
        adaptive_max_pool2d,
        adaptive_max_pool2d_values,
        adaptive_max_pool2d_backward,
        adaptive_max_pool2d_gather,
        adaptive_max_pool2d_indices,
        adaptive_avg_pool2d,
        adaptive_avg_pool2d_backward,
        lp_pool2d,
        lp_pool2d_backward,
    )
}


# 2 x MAC, padding counted, as torch counts its own convolutions. Pools count as none, as in torch.


def _flops(weight, output):
    count = 2 * output[0] * output[2] * output[3]
    for size in weight:
        count *= size
    return count


def conv2d_flops(input, weight, *args, out_shape=None, **kwargs):
    return _flops(weight, out_shape)


def conv2d_max_pool2d_flops(
    input, weight, bias, stride, padding, dilation, groups, *rest, out_shape=None, **kwargs
):
    return _flops(weight, _conv_output(input, weight, stride, padding, dilation, groups))


def conv2d_grad_input_flops(grad_output, weight, *args, out_shape=None, **kwargs):
    return _flops(weight, grad_output)


def conv2d_grad_weight_flops(input, grad_output, *args, out_shape=None, **kwargs):
    return _flops(out_shape[0], grad_output)


def conv_transpose2d_flops(input, weight, *args, out_shape=None, **kwargs):
    return _flops(weight, input)


FLOPS = {
    "conv2d": conv2d_flops,
    "conv2d_max_pool2d": conv2d_max_pool2d_flops,
    "conv2d_batch_norm": conv2d_flops,
    "conv2d_grad_input": conv2d_grad_input_flops,
    "conv2d_grad_weight": conv2d_grad_weight_flops,
    "conv_transpose2d": conv_transpose2d_flops,
}
