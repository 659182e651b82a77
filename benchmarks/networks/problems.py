"""A network as a suite: the distinct problems of its convolutions and pools, each with the layers that have it."""

from dataclasses import dataclass

DIRECTIONS = ("forward", "grad_input", "grad_weight")


@dataclass(frozen=True)
class Problem:
    """`fields` are those of the problem, as `_C.problem_text` takes them; `layers` the names of those that have it."""

    fields: dict
    layers: tuple

    @property
    def count(self):
        return len(self.layers)


def problems(network, batch=1, layout="nchw", direction="forward", training=False):
    """The distinct problems of one pass through a network, in the order of execution.

    Args:
        layout: "nchw" or "nhwc".
        direction: "forward", "grad_input" or "grad_weight". The first layer has no grad_input (nobody wants the
            gradient of an image), pools have no grad_weight.
        training: a forward pass that a backward pass follows: auxiliary heads run, max-pools keep offsets,
            normalisation is not folded into convolutions. Gradients are always those of training.

    Returns:
        A list of Problem. The counts add up to the convolutions and pools of the pass; a transposed convolution is
        the convolution whose gradient it is.

    Raises:
        ValueError: for an unknown direction.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"direction is one of {', '.join(DIRECTIONS)}, but got {direction!r}")
    training = training or direction != "forward"
    found = {}
    for number, (layer, before, _) in enumerate(network.walk(training)):
        is_pool = layer.kind in ("max", "avg")
        wanted = {"forward": True, "grad_input": number > 0, "grad_weight": not is_pool}[direction]
        if layer.kind == "linear" or not wanted:
            continue
        more = {"training": training} if is_pool else {}
        fields = layer.problem(before, batch, layout, direction, **more)
        found.setdefault(tuple(fields.items()), (fields, []))[1].append(layer.name)
    return [Problem(fields, tuple(names)) for fields, names in found.values()]
