"""A contestant is one side of a case in one layout: a call to be timed, and its results to be checked first.

This file has PyTorch's eager calls and fastconv's rows; peers.py lists the other peers.
"""

import contextlib
from dataclasses import dataclass

import fastconv
import torch
from fastconv import ops

from . import fastconv_layer, torch_layer
from . import operands as o


class Refused(Exception):
    """The side cannot run this case; the text says why."""


@dataclass
class Contestant:
    """`call()` is timed. `results()` does the same and returns torch tensors [output, gradients...]. `held_bytes` stay
    allocated between calls beside the operands. `seconds`: what the checked call took."""

    side: str
    layout: str
    call: object
    results: object = None
    held_bytes: int = 0
    seconds: float = 0.0

    def __post_init__(self):
        self.results = self.results or self.call


def torch_eager(case, tensors, layout, threads):
    return Contestant("torch", layout, torch_call(case, tensors, best=True))


def torch_results(case, tensors):
    """What the case computes, by PyTorch's functions of the same names on these tensors."""
    with torch.set_grad_enabled(case.direction == "train"):
        return torch_call(case, tensors)()


def reference_results(case, t):
    """torch_results of tensors in float64, the faster way."""
    if not torch_layer.is_depthwise(case.fields) or case.direction not in ("fwd", "train"):
        return torch_results(case, t)
    forward = lambda: torch_layer.depthwise(case.fields, t.x, t.weight, t.bias, t.residual)  # noqa: E731
    with torch.set_grad_enabled(case.direction == "train"):
        return forward_and_gradients(forward, t) if case.direction == "train" else [forward()]


def torch_call(case, t, best=False):
    """A function without arguments that returns [results]. Max-pooling's indices are found beforehand."""
    forward = lambda: torch_layer.forward(case.fields, t.x, t.weight, t.bias, t.residual, best)  # noqa: E731
    if case.direction == "fwd":
        return lambda: [forward()]
    if case.direction == "train":
        return lambda: forward_and_gradients(forward, t)
    gradient = torch_layer.gradient(case, t, best)
    return lambda: gradient(t.dy, t.x, t.weight, t.y)


def fastconv_row(case, tensors, layout, algorithm):
    kept = sum(choice["prepack_bytes"] for choice in choices(case, layout, algorithm))
    return Contestant("fastconv", layout, fastconv_call(case, tensors, algorithm), held_bytes=kept)


def fastconv_call(case, t, algorithm):
    forward = lambda: fastconv_layer.forward(case.fields, t, algorithm)  # noqa: E731
    if case.direction == "fwd":
        return lambda: [forward()]
    if case.direction == "train":
        return lambda: forward_and_gradients(forward, t)
    return fastconv_layer.gradient(case, t, algorithm)


def forward_and_gradients(forward, t):
    """[output, gradients of those of x, weight, bias that want one]"""
    y = forward()
    wanted = [each for each in (t.x, t.weight, t.bias) if each is not None and each.requires_grad]
    return [y, *torch.autograd.grad(y, wanted, t.dy)] if wanted else [y]


def algorithms(device="cpu"):
    """The names that `algorithm=` takes on a device; "auto" leaves the choice to fastconv."""
    rows = ops.extension().algorithms()
    return ["auto", *dict.fromkeys(r["name"] for r in rows if r["kind"] == "conv" and r["device"] == device)]


@contextlib.contextmanager
def accuracy(name):
    """fastconv's accuracy class within."""
    before = fastconv.get_accuracy()
    fastconv.set_accuracy(name)
    try:
        yield
    finally:
        fastconv.set_accuracy(before)


def is_refusal(error):
    """Whether no row takes the problem, which every row's reason explains: no failure."""
    return str(error).startswith("fastconv: no algorithm")


def choices(case, layout, algorithm):
    """What fastconv runs a case with, a dict for each pass: "pass", "problem", "algorithm", "why", "workspace_bytes",
    "prepack_bytes" (the part of the workspace that keeps the transformed filter), "executed_macs".

    Raises:
        RuntimeError: a forced row refuses; the text lists every row's reason.
    """
    chosen, threads = [], torch.get_num_threads()
    for direction, text in case.problems(layout, fastconv.get_accuracy()):
        ops.extension().select(text, threads=threads, algorithm=algorithm)  # raises if there is no choice
        rows = ops.extension().explain(text, threads=threads, algorithm=algorithm)
        row = next(row for row in rows if row["chosen"])
        kept = {key: row[key] for key in ("workspace_bytes", "prepack_bytes", "executed_macs")}
        chosen.append({"pass": direction, "problem": text, "algorithm": row["name"], "why": row["reason"], **kept})
    return chosen


def saved_bytes(function, parameters):
    """Bytes that a forward keeps alive for backward: every storage once, those of `parameters` not at all."""
    known = {p.untyped_storage().data_ptr() for p in parameters}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage  # held, so that no other tensor gets this address
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = function()
    del y
    return sum(storage.nbytes() for storage in kept.values())


def saved_for_backward(case, side, tensors, algorithm="auto"):
    """Bytes that training keeps for this layer: what its forward saves beside its parameters."""
    x = tensors.x.detach().requires_grad_(not case.first)
    parameters = [None if t is None else t.detach().requires_grad_() for t in (tensors.weight, tensors.bias)]
    fields, given = case.fields, o.Tensors(x, *parameters, tensors.residual)
    if side == "torch":
        forward = lambda: torch_layer.forward(fields, given.x, given.weight, given.bias, given.residual)  # noqa: E731
    else:
        forward = lambda: fastconv_layer.forward(fields, given, algorithm)  # noqa: E731
    return saved_bytes(forward, [p for p in parameters if p is not None])
