"""The two sides, layer by layer: PyTorch's best eager calls, and fastconv's. Nothing else here knows either API.

Both sides are called as functions with the same operands. Convolution and ReLU are one layer: fastconv fuses them,
PyTorch applies ReLU in place. Linear layers are torch's on both sides.
"""

import fastconv
import fastconv.functional as FF
import torch
import torch.nn.functional as F

from .layers import pair

_C = fastconv.ops.extension()  # raises ExtensionError, which names the cure

SIDES = ("torch", "fastconv")


def torch_layer(layer, x, weight=None, bias=None):
    if layer.kind == "conv":
        y = F.conv2d(x, weight, bias, pair(layer.stride), pair(layer.padding), 1, layer.groups)
        return y.relu_() if layer.relu else y
    if layer.kind == "max":
        return F.max_pool2d(x, layer.window, layer.stride, layer.padding, 1, layer.ceil_mode)
    if layer.kind == "avg":
        return F.avg_pool2d(x, layer.window, layer.stride, layer.padding, layer.ceil_mode)
    y = F.linear(x.flatten(1), weight, bias)
    return y.relu_() if layer.relu else y


def fastconv_layer(layer, x, weight=None, bias=None, algorithm="auto"):
    if layer.kind == "conv":
        return FF.conv2d(
            x,
            weight,
            bias,
            pair(layer.stride),
            pair(layer.padding),
            1,
            layer.groups,
            activation="relu" if layer.relu else None,
            algorithm=algorithm,
        )
    if layer.kind == "max":
        return FF.max_pool2d(x, layer.window, layer.stride, layer.padding, 1, layer.ceil_mode)
    return FF.avg_pool2d(x, layer.window, layer.stride, layer.padding, layer.ceil_mode)


def call(side, layer, algorithm="auto"):
    """f(x, weight, bias) for one side."""
    if side == "torch" or layer.kind == "linear":
        return lambda x, weight, bias: torch_layer(layer, x, weight, bias)
    return lambda x, weight, bias: fastconv_layer(layer, x, weight, bias, algorithm)


def forward_and_gradients(function, x, weight, bias, dy):
    """[output, gradients of those of x, weight, bias that want one]; without `dy` the output alone."""
    y = function(x, weight, bias)
    if dy is None:
        return [y]
    wanted = [t for t in (x, weight, bias) if t is not None and t.requires_grad]
    return [y, *torch.autograd.grad(y, wanted, dy)] if wanted else [y]


def converted(model):
    """A model of models.build with its layers exchanged for fastconv's, in place."""
    return fastconv.convert(model, inplace=True, fallback="error")


def forced(algorithm):
    return fastconv.algorithm(algorithm)


def algorithms():
    """The names that `algorithm=` takes."""
    return ["auto", *dict.fromkeys(row["name"] for row in _C.algorithms() if row["kind"] == "conv")]


def choices(layer, shape, batch, layout, training, first, algorithm):
    """What fastconv runs a layer with, a dict for each pass: "pass", "problem", "algorithm", "why", "workspace_bytes",
    "prepack_bytes" (the part of the workspace that keeps the transformed filter), "executed_macs".

    `first`: nobody wants the gradient of the network's input.

    Raises:
        RuntimeError: a forced row refuses; the text lists every row's reason.
    """
    chosen = []
    for direction in directions(layer, training, first):
        more = {} if layer.kind == "conv" else {"training": training}
        fields = layer.problem(shape, batch, layout, direction, **more)
        if layer.kind == "conv":
            fields["accuracy"] = fastconv.get_accuracy()
        text = _C.problem_text(fields)
        threads = torch.get_num_threads()
        _C.select(text, threads=threads, algorithm=algorithm)  # raises with the reasons if there is no choice
        row = next(row for row in _C.explain(text, threads=threads, algorithm=algorithm) if row["chosen"])
        chosen.append(
            {
                "pass": direction,
                "problem": text,
                "algorithm": row["name"],
                "why": row["reason"],
                "workspace_bytes": row["workspace_bytes"],
                "prepack_bytes": row["prepack_bytes"],
                "executed_macs": row["executed_macs"],
            }
        )
    return chosen


def directions(layer, training, first):
    if not training:
        return ["forward"]
    gradients = [] if first else ["grad_input"]
    return ["forward", *gradients, *(["grad_weight"] if layer.kind in ("conv", "linear") else [])]


def saved_bytes(function, parameters):
    """Bytes that a forward keeps alive for backward: every storage once, those of `parameters` not at all."""
    known = {p.untyped_storage().data_ptr() for p in parameters}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage  # held, so that no other tensor gets this address

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda nothing: nothing):
        y = function()
    del y
    return sum(storage.nbytes() for storage in kept.values())
