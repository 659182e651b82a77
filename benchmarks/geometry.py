"""Numbers that follow from a problem's fields (cases.Case.fields): windows, pads, output sizes, the activation.

A transposed convolution has the fields of the convolution whose gradient by the input it is: c, h, w are its output's,
k its input's channels.
"""

import math

from .nearest import did_you_mean

# Activations that a convolution may end with -> the default of the number after the colon, None where there is none.
ACTIVATIONS = {
    "relu": None, "leaky_relu": 0.01, "relu6": None, "elu": 1.0, "sigmoid": None, "tanh": None, "silu": None,
    "gelu": None, "hardswish": None,
}  # fmt: skip
CONVOLUTIONS = ("conv", "conv_transpose")


def parse_activation(word):
    """'leaky_relu:0.2' -> the fields {"activation": "leaky_relu", "activation_parameter": 0.2}; '' is none.

    Raises:
        ValueError: an unknown name (naming the nearest), a number where none belongs, or one that is negative.
    """
    name, colon, number = word.partition(":")
    if name in ("", "none") and not colon:
        return {"activation": "none"}
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation '{word}'; {did_you_mean(name, ACTIVATIONS)}")
    default = ACTIVATIONS[name]
    if default is None:
        if colon:
            raise ValueError(f"activation '{word}': {name} takes no number")
        return {"activation": name}
    try:
        parameter = float(number) if colon else default
    except ValueError:
        parameter = math.nan
    if not 0 <= parameter < math.inf:
        raise ValueError(f"activation '{word}': '{number}' is no number of at least 0")
    return {"activation": name, "activation_parameter": parameter}


def activation(fields):
    """(name, number or None)"""
    name = fields.get("activation", "none")
    return name, fields.get("activation_parameter", ACTIVATIONS.get(name))


def activation_word(fields):
    """As fastconv's operators spell it: 'none', 'relu', 'leaky_relu:0.2'."""
    name, parameter = activation(fields)
    return name if parameter is None else f"{name}:{parameter!r}"


def window(fields):
    return [fields["r"], fields["s"]]


def stride(fields):
    return [fields["stride_h"], fields["stride_w"]]


def dilation(fields):
    return [fields.get("dilation_h", 1), fields.get("dilation_w", 1)]


def pads(fields):
    """Top, left, bottom, right."""
    top, left = fields["pad_top"], fields["pad_left"]
    return [top, left, fields.get("pad_bottom", top), fields.get("pad_right", left)]


def equal_pads(fields):
    top, left, bottom, right = pads(fields)
    return (top, left) == (bottom, right)


def operator_pad(fields):
    """What PyTorch's operator itself pads: nothing where F.pad does because the pads differ."""
    return pads(fields)[:2] if equal_pads(fields) else [0, 0]


def avg_arguments(fields):
    """What follows the input of F.avg_pool2d."""
    divisor = fields.get("divisor") or None
    counts = fields.get("count_include_pad", True)
    return window(fields), stride(fields), operator_pad(fields), fields["ceil_mode"], counts, divisor


def is_adaptive(fields):
    return bool(fields.get("adaptive"))


def is_global(fields):
    """Whether an average is of every map as a whole."""
    whole = window(fields) == [fields["h"], fields["w"]] and pads(fields) == [0, 0, 0, 0]
    return fields["kind"] == "avg" and whole and not fields.get("divisor")


def output_plane(fields):
    """(p, q) of the problem, by the formula; below 1 where the window does not fit."""
    if fields["kind"] == "linear":
        return 1, 1
    if is_adaptive(fields):
        return fields["p"], fields["q"]
    top, left, bottom, right = pads(fields)
    sizes = []
    for axis, size, far in (("h", fields["h"], top + bottom), ("w", fields["w"], left + right)):
        reach = fields["r" if axis == "h" else "s"]
        step, spread = max(1, fields[f"stride_{axis}"]), fields.get(f"dilation_{axis}", 1)
        slack = size + far - spread * (reach - 1) - 1
        sizes.append((slack + (step - 1 if fields.get("ceil_mode") else 0)) // step + 1)
    return tuple(sizes)


def output_padding(fields):
    """What a transposed convolution's output has beyond the least: rows, columns."""
    top, left, bottom, right = pads(fields)
    plane = zip((fields["h"], fields["w"]), window(fields), dilation(fields), stride(fields), strict=True)
    slacks = [
        (size + far - spread * (reach - 1) - 1) % step
        for (size, reach, spread, step), far in zip(plane, (top + bottom, left + right), strict=True)
    ]
    return slacks


def input_sizes(fields):
    """(n, channels, height, width) of what the layer is given."""
    if fields["kind"] == "conv_transpose":
        return fields["n"], fields["k"], *output_plane(fields)
    return tuple(fields[key] for key in "nchw")


def output_sizes(fields):
    """(n, channels, height, width) of what the layer makes."""
    if fields["kind"] == "conv_transpose":
        return tuple(fields[key] for key in "nchw")
    return fields["n"], fields.get("k", fields["c"]), *output_plane(fields)


def weight_sizes(fields):
    """(k, c / groups, r, s) of a convolution; PyTorch stores a transposed one's weight alike."""
    return fields["k"], fields["c"] // max(1, fields["groups"]), *window(fields)


def bias_size(fields):
    return fields["c" if fields["kind"] == "conv_transpose" else "k"]
