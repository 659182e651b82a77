"""torch.compile as a peer: inference with frozen weights (packed and fused by Inductor), gradients as compiled."""

import torch
import torch._dynamo
import torch._inductor.config as inductor

from . import contestants as c
from . import torch_layer


def absent():
    """Why there is no torch.compile here; None if there is."""
    try:
        from torch._inductor.cpp_builder import get_cpp_compiler

        get_cpp_compiler()
    except Exception as error:
        return f"Inductor finds no C++ compiler ({error})"
    return None


class _Layer(torch.nn.Module):
    """Weights are parameters: freezing folds those into the compiled code."""

    def __init__(self, fields, t):
        super().__init__()
        self.fields = fields
        self.weight, self.bias = (None if p is None else torch.nn.Parameter(p.detach()) for p in (t.weight, t.bias))

    def forward(self, x, residual):
        return torch_layer.forward(self.fields, x, self.weight, self.bias, residual, best=True)


def contestant(case, t, layout, threads):
    """Compiles at once, so that the first call is as fast as the rest.

    Raises:
        Refused: Inductor or the C++ compiler fails, with its words.
    """
    if case.kind == "lp" and case.direction == "grad_input":
        raise c.Refused("torch.compile: no operator is the gradient of LP pooling by itself; measured in 'train'")
    torch._dynamo.reset()  # each layer is a new program of the same code: dynamo would give up after eight
    call = _call(case, t)
    try:
        with inductor.patch(freezing=case.direction == "fwd"):
            call()
    except Exception as error:  # Inductor's errors have no common base but Exception
        raise c.Refused(f"torch.compile: {str(error).strip().splitlines()[0]}") from None
    return c.Contestant("torch.compile", layout, call)


def _call(case, t):
    if case.direction == "fwd":
        layer = torch.compile(_Layer(case.fields, t).eval(), dynamic=False)
        return lambda: [layer(t.x, t.residual)]
    if case.direction == "train":
        forward = torch.compile(
            lambda x, weight, bias, residual: torch_layer.forward(case.fields, x, weight, bias, residual, best=True),
            dynamic=False,
        )
        return lambda: c.forward_and_gradients(lambda: forward(t.x, t.weight, t.bias, t.residual), t)
    gradient = torch.compile(torch_layer.gradient(case, t, best=True), dynamic=False)
    return lambda: gradient(t.dy, t.x, t.weight, t.y)
