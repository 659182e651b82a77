"""Activations that a convolution applies to its output, named by one word: "relu", "leaky_relu:0.2", ...

The word after the colon is the slope of leaky_relu (0.01 if left out) or the alpha of elu (1). It must be finite and
at least 0, so that an output tells the sign of its input.

Backward needs the output only where the derivative follows from it: relu, leaky_relu, relu6, elu, sigmoid and tanh.
silu, gelu and hardswish need their input.
"""

import math

import torch
import torch.nn.functional as F

_aten = torch.ops.aten

_PARAMETERS = {"leaky_relu": 0.01, "elu": 1.0}
_LINEAR = ("none", "relu", "leaky_relu", "relu6")  # piecewise: the derivative does not change with the output
_OF_OUTPUT = (*_LINEAR, "elu", "sigmoid", "tanh")

_FUNCTIONS = {  # (z, parameter, in place if that spares memory)
    "none": lambda z, _, inplace: z,
    "relu": lambda z, _, inplace: F.relu(z, inplace),
    "leaky_relu": lambda z, slope, inplace: F.leaky_relu(z, slope, inplace),
    "relu6": lambda z, _, inplace: F.relu6(z, inplace),
    "elu": lambda z, alpha, inplace: F.elu(z, alpha, inplace),
    "sigmoid": lambda z, _, inplace: torch.sigmoid_(z) if inplace else torch.sigmoid(z),
    "tanh": lambda z, _, inplace: torch.tanh_(z) if inplace else torch.tanh(z),
    "silu": lambda z, _, inplace: F.silu(z),
    "gelu": lambda z, _, inplace: F.gelu(z),
    "hardswish": lambda z, _, inplace: F.hardswish(z),
}
_MODULES = {
    torch.nn.ReLU: "relu",
    torch.nn.LeakyReLU: "leaky_relu",
    torch.nn.ReLU6: "relu6",
    torch.nn.ELU: "elu",
    torch.nn.Sigmoid: "sigmoid",
    torch.nn.Tanh: "tanh",
    torch.nn.SiLU: "silu",
    torch.nn.GELU: "gelu",
    torch.nn.Hardswish: "hardswish",
}
_LABELS = {name: kind.__name__ for kind, name in _MODULES.items()}

NAMES = tuple(name for name in _FUNCTIONS if name != "none")


def parse(word):
    """(name, parameter or None) of an operator's word.

    Raises ValueError for a word that names no activation, or a parameter that is no finite number of at least 0.
    """
    name, colon, text = word.partition(":")
    if name not in _FUNCTIONS or (colon and name not in _PARAMETERS):
        raise ValueError(f"fastconv: unknown activation {word!r}; known are: None, {', '.join(NAMES)}")
    if not colon:
        return name, _PARAMETERS.get(name)
    try:
        parameter = float(text)
    except ValueError:
        raise ValueError(f"fastconv: unknown activation {word!r}: {text!r} is no number") from None
    if not 0 <= parameter < math.inf:
        raise ValueError(f"fastconv: the parameter of activation {word!r} must be finite and at least 0")
    return name, parameter


def operator_word(activation):
    """What the operators call the `activation` that a user named (None or a word). Raises ValueError or TypeError."""
    if activation is None:
        return "none"
    if not isinstance(activation, str):
        raise TypeError(f"fastconv: activation must be None or a str, but got {type(activation).__name__}")
    if activation != "relu" and parse(activation)[0] == "none":
        raise ValueError(f"fastconv: unknown activation 'none'; known are: None, {', '.join(NAMES)}")
    return activation


def needs_input(word):
    """Does the derivative need the activation's input?"""
    return word not in _OF_OUTPUT and parse(word)[0] not in _OF_OUTPUT


def is_linear(word):
    """Is the activation piecewise linear (or none)?"""
    return word in _LINEAR or parse(word)[0] in _LINEAR


def apply(word, z, inplace=False):
    """The activation by torch's own function."""
    name, parameter = parse(word)
    return _FUNCTIONS[name](z, parameter, inplace)


def label(word):
    """The name of the torch.nn module, for reports."""
    return _LABELS[parse(word)[0]]


def word_for(name, options):
    """The word for an activation with torch's options (negative_slope, alpha, approximate); None: no kernel has it."""
    if options.get("approximate", "none") != "none":
        return None
    if name not in _PARAMETERS:
        return name
    parameter = options.get("negative_slope" if name == "leaky_relu" else "alpha", _PARAMETERS[name])
    if isinstance(parameter, bool) or not isinstance(parameter, int | float) or not 0 <= parameter < math.inf:
        return None
    return f"{name}:{float(parameter)!r}"


def of_module(module):
    """The word for a torch.nn activation module; None for any other module, subclasses included."""
    name = _MODULES.get(type(module))
    return name and word_for(name, module.__dict__)


def times_derivative(grad, y, word):
    """grad * act'(z) from the output y = act(z). Differentiable in both, any number of times."""
    name, parameter = parse(word)
    if name == "relu":  # NaN passes, as in torch
        return grad.masked_fill(y <= 0, 0)
    if name == "leaky_relu":
        return torch.where(y > 0, grad, grad * parameter)
    if name == "relu6":
        return grad.masked_fill((y <= 0) | (y >= 6), 0)
    if name == "elu":
        return torch.where(y <= 0, grad * (y + parameter), grad)
    return _aten.sigmoid_backward(grad, y) if name == "sigmoid" else _aten.tanh_backward(grad, y)


def times_second_derivative(grad, y, word):
    """grad * d act'(z) / dy from the output y, for those that are not piecewise linear."""
    name, _ = parse(word)
    if name == "elu":
        return grad.masked_fill(y > 0, 0)
    return grad * (1 - 2 * y if name == "sigmoid" else -2 * y)


def times_derivative_of_input(grad, z, word):
    """grad * act'(z) from the input, for those that need it. Differentiable in both, any number of times."""
    name, _ = parse(word)
    if name == "silu":
        s = torch.sigmoid(z)
        return grad * (s * (1 + z * (1 - s)))
    if name == "gelu":
        cdf = (1 + torch.erf(z * math.sqrt(0.5))) / 2
        return grad * (cdf + z * torch.exp(-z * z / 2) / math.sqrt(2 * math.pi))
    return torch.where(z < -3, 0, torch.where(z <= 3, grad * (z / 3 + 0.5), grad))
