"""A contestant is one side of a case in one layout: a call to be timed, and its results to be checked first.

This file has PyTorch's eager calls and fastconv's rows; peers.py lists the other peers.
"""

import contextlib
from dataclasses import dataclass

import fastconv
import fastconv.functional as FF
import torch
from fastconv import ops

from . import operands as o


class Refused(Exception):
    """The side cannot run this case; the text says why."""


@dataclass
class Contestant:
    """`call()` is timed. `results()` does the same and returns torch tensors [output, gradients...]. `held_bytes` stay
    allocated between calls beside the operands."""

    side: str
    layout: str
    call: object
    results: object = None
    held_bytes: int = 0

    def __post_init__(self):
        self.results = self.results or self.call


def torch_eager(case, tensors, layout, threads):
    return Contestant("torch", layout, torch_call(case, tensors, best=True))


def torch_results(case, tensors):
    """What the case computes, by PyTorch's functions of the same names on these tensors."""
    with torch.set_grad_enabled(case.direction == "train"):
        return torch_call(case, tensors)()


def torch_call(case, t, best=False):
    """A function without arguments that returns [results]. Max-pooling's indices are found beforehand."""
    forward = lambda: o.torch_forward(case.fields, t.x, t.weight, t.bias, t.residual, best)  # noqa: E731
    if case.direction == "fwd":
        return lambda: [forward()]
    if case.direction == "train":
        return lambda: forward_and_gradients(forward, t)
    gradient = torch_gradient(case, t, best)
    return lambda: gradient(t.dy, t.x, t.weight, t.y)


def torch_gradient(case, t, best=False):
    """f(dy, x, weight, y) -> [gradient, ...] as autograd runs it."""
    fields = case.fields
    if fields["kind"] == "conv":
        return _torch_conv_gradient(case, t)
    if best and o.is_global(fields):
        count = fields["h"] * fields["w"]
        return lambda dy, x, weight, y: [dy.expand_as(x) / count]
    if fields["kind"] == "avg":
        arguments = o.avg_arguments(fields)
        return lambda dy, x, weight, y: [torch.ops.aten.avg_pool2d_backward(dy, x, *arguments)]
    shape = (o.window(fields), o.stride(fields), o.pads(fields)[:2], o.dilation(fields), fields["ceil_mode"])
    indices = torch.ops.aten.max_pool2d_with_indices(t.x, *shape)[1]
    return lambda dy, x, weight, y: [torch.ops.aten.max_pool2d_with_indices_backward(dy, x, *shape, indices)]


def _torch_conv_gradient(case, t):
    fields, wants_weight = case.fields, case.direction == "grad_weight"
    top, left, bottom, right = o.pads(fields)
    equal = (top, left) == (bottom, right)
    relu = fields.get("activation") == "relu"
    bias_sizes = None if t.bias is None else [fields["k"]]
    mask = [not wants_weight, wants_weight, wants_weight and t.bias is not None]
    geometry = (o.stride(fields), [top, left] if equal else [0, 0], o.dilation(fields), False, [0, 0], fields["groups"])

    def gradient(dy, x, weight, y):
        if relu:
            dy = torch.ops.aten.threshold_backward(dy, y, 0)
        if not equal:
            x = torch.nn.functional.pad(x, (left, right, top, bottom))
        found = torch.ops.aten.convolution_backward(dy, x, weight, bias_sizes, *geometry, mask)
        if not wants_weight:
            padded = found[0]
            return [padded if equal else padded[:, :, top : padded.shape[2] - bottom, left : padded.shape[3] - right]]
        return [found[1]] if t.bias is None else [found[1], found[2]]

    return gradient


def fastconv_row(case, tensors, layout, algorithm):
    kept = sum(choice["prepack_bytes"] for choice in choices(case, layout, algorithm))
    return Contestant("fastconv", layout, fastconv_call(case, tensors, algorithm), held_bytes=kept)


def fastconv_call(case, t, algorithm):
    fields = case.fields
    if case.direction == "fwd":
        return lambda: [fastconv_forward(fields, t, algorithm)]
    if case.direction == "train":
        return lambda: forward_and_gradients(lambda: fastconv_forward(fields, t, algorithm), t)
    if fields["kind"] == "conv":
        return _fastconv_conv_gradient(case, t, algorithm)
    shape = (o.window(fields), o.stride(fields), o.pads(fields)[:2])
    if fields["kind"] == "avg":
        return lambda: [ops.avg_pool2d_backward(t.dy, t.x.shape, *o.avg_arguments(fields))]
    more = (o.dilation(fields), fields["ceil_mode"])
    offsets = ops.max_pool2d(t.x, *shape, *more)[1]
    return lambda: [ops.max_pool2d_backward(t.dy, offsets, t.x.shape, *shape, *more)]


def fastconv_forward(fields, t, algorithm):
    if fields["kind"] == "max":
        shape = (o.window(fields), o.stride(fields), o.pads(fields)[:2])
        return FF.max_pool2d(t.x, *shape, o.dilation(fields), fields["ceil_mode"])
    if fields["kind"] == "avg":
        return FF.avg_pool2d(t.x, *o.avg_arguments(fields))
    activation = "relu" if fields.get("activation") == "relu" else None
    pads = o.pads(fields)
    if pads[:2] != pads[2:]:  # torch's signature has no unequal pads, the operator does
        return fastconv.autograd.conv2d(
            t.x, t.weight, t.bias, t.residual, o.stride(fields), pads, o.dilation(fields), fields["groups"],
            activation or "none", algorithm, fastconv.get_accuracy(),
        )  # fmt: skip
    return FF.conv2d(
        t.x, t.weight, t.bias, o.stride(fields), pads[:2], o.dilation(fields), fields["groups"],
        activation=activation, residual=t.residual, algorithm=algorithm,
    )  # fmt: skip


def _fastconv_conv_gradient(case, t, algorithm):
    fields = case.fields
    geometry = (o.stride(fields), o.pads(fields), o.dilation(fields), fields["groups"])
    how = (fields.get("activation", "none"), algorithm, fastconv.get_accuracy())
    if case.direction == "grad_input":
        return lambda: [ops.conv2d_grad_input(t.dy, t.weight, t.y, t.x.shape, *geometry, *how)]
    bias = t.bias is not None

    def call():
        weight, of_bias = ops.conv2d_grad_weight(t.x, t.dy, t.y, t.weight.shape, bias, *geometry, *how)
        return [weight, of_bias] if bias else [weight]

    return call


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
    given = o.Tensors(x, *parameters, tensors.residual)
    if side == "torch":
        forward = lambda: o.torch_forward(case.fields, given.x, given.weight, given.bias, given.residual)  # noqa: E731
    else:
        forward = lambda: fastconv_forward(case.fields, given, algorithm)  # noqa: E731
    return saved_bytes(forward, [p for p in parameters if p is not None])
