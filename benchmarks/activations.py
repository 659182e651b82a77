"""PyTorch's activations, as it runs them fastest, and their derivatives from the output; by the words of geometry.py.

fastconv has a table of its own: this one is what that is checked against.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from . import geometry as g

_aten = torch.ops.aten


@dataclass(frozen=True)
class Activation:
    """apply(z, number, inplace) -> y. derivative(dy, y, number) -> dz; None if y does not tell it: then the gradient
    needs z. kinks: where the derivative jumps."""

    apply: Callable
    derivative: Callable | None
    kinks: tuple = ()


_TABLE = {
    "relu": Activation(
        lambda z, _, inplace: F.relu(z, inplace), lambda dy, y, _: _aten.threshold_backward(dy, y, 0), (0,)
    ),
    "leaky_relu": Activation(
        lambda z, slope, inplace: F.leaky_relu(z, slope, inplace),
        lambda dy, y, slope: _aten.leaky_relu_backward(dy, y, slope, True),
        (0,),
    ),
    "relu6": Activation(
        lambda z, _, inplace: F.relu6(z, inplace), lambda dy, y, _: _aten.hardtanh_backward(dy, y, 0, 6), (0, 6)
    ),
    "elu": Activation(
        lambda z, alpha, inplace: F.elu(z, alpha, inplace),
        lambda dy, y, alpha: _aten.elu_backward(dy, alpha, 1, 1, True, y),
        (0,),
    ),
    "sigmoid": Activation(
        lambda z, _, inplace: z.sigmoid_() if inplace else z.sigmoid(),
        lambda dy, y, _: _aten.sigmoid_backward(dy, y),
    ),
    "tanh": Activation(
        lambda z, _, inplace: z.tanh_() if inplace else z.tanh(), lambda dy, y, _: _aten.tanh_backward(dy, y)
    ),
    "silu": Activation(lambda z, _, inplace: F.silu(z, inplace), None),
    "gelu": Activation(lambda z, _, inplace: _aten.gelu_(z) if inplace else F.gelu(z), None),
    "hardswish": Activation(lambda z, _, inplace: F.hardswish(z, inplace), None, (-3, 3)),
}


def needs_input(fields):
    """Does the gradient need what the activation was given?"""
    name, _ = g.activation(fields)
    return name != "none" and _TABLE[name].derivative is None


def apply(fields, z):
    """The activation of `z`, in place where autograd allows it."""
    name, number = g.activation(fields)
    if name == "none":
        return z
    inplace = not (needs_input(fields) and torch.is_grad_enabled() and z.requires_grad)
    return _TABLE[name].apply(z, number, inplace)


def derivative(fields):
    """f(dy, y) -> dz.

    Raises:
        ValueError: it needs z.
    """
    name, number = g.activation(fields)
    if name == "none":
        return lambda dy, y: dy
    if needs_input(fields):
        raise ValueError(f"the gradient of {name} does not follow from its output: run the pass 'train'")
    return lambda dy, y: _TABLE[name].derivative(dy, y, number)


def near_a_kink(fields, z, share):
    """Where z is within `share` of its largest size of a place where the derivative jumps; None if it never does."""
    kinks = _TABLE[g.activation(fields)[0]].kinks if g.activation(fields)[0] != "none" else ()
    if not kinks:
        return None
    reach = share * z.abs().max()
    near = (z - kinks[0]).abs() < reach
    for kink in kinks[1:]:
        near |= (z - kink).abs() < reach
    return near
