"""Every FLOP, byte and size formula of the benchmarks, in one place. Plain numbers in, plain numbers out.

Conventions: one multiply-accumulate (MAC) is two FLOPs; products with padding count, as everybody counts them; a
pooling FLOP is one comparison or addition per window element; bytes are of the elements alone.
"""

FLOAT = 4  # bytes of a float32, the dtype that the benchmarks run in


def window_positions(size, window, stride=1, padding=0, dilation=1, ceil_mode=False):
    """Positions of a sliding window along one axis: (size + 2 padding - dilation (window - 1) - 1) / stride + 1.

    With ceil_mode a partial window counts too, unless it would start in the padding behind the input (torch's rule).
    """
    slack = size + 2 * padding - dilation * (window - 1) - 1
    count = (slack + (stride - 1 if ceil_mode else 0)) // stride + 1
    if ceil_mode and (count - 1) * stride >= size + padding:
        count -= 1
    return count


def transposed_size(size, window, stride=1, padding=0):
    """Rows or columns that a transposed convolution makes: the inverse of window_positions where that divides."""
    return (size - 1) * stride - 2 * padding + window


def elements(shape):
    product = 1
    for size in shape:
        product *= size
    return product


def conv_macs(n, k, p, q, c, r, s, groups=1):
    return n * k * p * q * (c // groups) * r * s


def conv_parameters(k, c, r, s, groups=1, bias=True):
    return k * (c // groups) * r * s + (k if bias else 0)


def norm_parameters(channels):
    """Scale and shift of batch normalisation; the running mean and variance are not trained."""
    return 2 * channels


def linear_macs(n, inputs, outputs):
    return n * inputs * outputs


def linear_parameters(inputs, outputs, bias=True):
    return inputs * outputs + (outputs if bias else 0)


def flops(macs):
    return 2 * macs


def textbook_operations(macs, outputs):
    """Multiplications plus additions as textbooks count them: a sum of m products takes m - 1 additions."""
    return macs + (macs - outputs)


def pool_flops(n, c, p, q, r, s):
    return n * c * p * q * r * s


def layer_bytes(input_elements, parameters, output_elements, offset_bytes=0):
    """Least traffic of a forward pass: input and parameters read once, output (and pooling offsets) written once."""
    return (input_elements + parameters + output_elements) * FLOAT + output_elements * offset_bytes


def roofline_seconds(flop, byte, flops_per_second, bytes_per_second):
    """The time no implementation of this arithmetic beats: the slower of computing and moving."""
    return max(flop / flops_per_second, byte / bytes_per_second)
