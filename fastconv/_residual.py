"""ResNet's `relu(conv(x) + identity)`, with a BatchNorm2d after the convolution or not, as the convolution's work.

The forward that computes it is generated anew by torch.fx: `conv(x, identity)`, then `norm(y, identity)`, stand where
the sum stood, and sum and activation are gone. In eval mode the convolution does all of it in one kernel; while the
BatchNorm uses the batch's statistics, it is the BatchNorm that adds and activates.
"""

import torch

from ._fold import ConvActivation2d
from ._trace import is_sum_of


def _parts(activation, owner, conv, norm):
    """(convolution's node, BatchNorm's node or None, the sum's, the other term's); None if the graph is not so."""
    total = activation.all_input_nodes[0]
    for term in total.args if total.op == "call_function" else ():
        if not isinstance(term, torch.fx.Node) or not is_sum_of(total, term) or len(term.users) != 1:
            continue
        other = total.args[1] if total.args[0] is term else total.args[0]
        if norm is not None:
            if not _calls(term, owner, norm):
                continue
            normed, term = term, term.args[0]
        if _calls(term, owner, conv) and len(term.users) == 1 and isinstance(term.args[0], torch.fx.Node):
            return term, normed if norm is not None else None, total, other
    return None


def _calls(node, owner, module):
    plain = node.op == "call_module" and len(node.args) == 1 and not node.kwargs
    return plain and owner.get_submodule(node.target) is module


def why_not_moved(activation, owner, conv, norm):
    """Why the convolution before this activation cannot run as late as the sum, in words; None if it can.

    What runs between the two must not be able to change the convolution's input, or a tensor that shares its memory: so
    that input has to come from another convolution, and nothing between may see what came of that one.
    """
    parts = _parts(activation, owner, conv, norm)
    if parts is None:
        return "the sum before it traces differently on its own"
    first, normed, total, _ = parts
    between, node = [], first.next
    while node is not total:
        between += [node] if node is not normed and node.op.startswith("call_") else []
        node = node.next
    if not between:
        return None
    family, node = {first.args[0]}, first.args[0]
    while not (node.op == "call_module" and isinstance(owner.get_submodule(node.target), torch.nn.Conv2d)):
        if len(node.all_input_nodes) != 1:
            return "what runs before the sum could change the convolution's input"
        node = node.all_input_nodes[0]
        family.add(node)
    if any(parent in family for node in between for parent in node.all_input_nodes):
        return "what runs before the sum also sees the convolution's input"
    return None


def move_residual(graph, activation, owner, conv, norm):
    """Replace convolution, BatchNorm, sum and activation in `graph` as said above."""
    first, normed, total, other = _parts(activation, owner, conv, norm)
    with graph.inserting_before(total):
        result = graph.call_module(first.target, (first.args[0], other))
        if normed is not None:
            result = graph.call_module(normed.target, (result, other))
    activation.replace_all_uses_with(result)
    for node in (activation, total, normed, first):
        if node is not None:
            graph.erase_node(node)


class ConvResidual2d(ConvActivation2d):
    """A convolution that adds a residual and does the activation after that."""

    def forward(self, input, residual):
        return self._convolve(input, self.weight, self.bias, self._activation, residual)
