"""`python -m benchmarks describe`: the table that every course shows, computed from the description."""

import dataclasses

from . import formulas as f
from .blocks import Branches, Head, Step, inside, steps
from .table import Column, Table, count, megabytes, plain


def _size(shape):
    if len(shape) == 1:
        return str(shape[0])
    c, h, w = shape
    return f"{h}x{w}x{c}"


def describe(network):
    """The layers of `network` as a Table: output sizes, activation memory, parameters, MACs, FLOPs, per image.

    A block's line holds what its join makes; below it, indented, each branch begins with a dash. A block equal to the
    one before is one line with the sums of all that is in it.
    """
    table = Table(
        title=f"{network.title}: {network.source}",
        columns=[
            Column("layer"),
            Column("kind", group=1),
            Column("output (HxWxC)", right=True),
            Column("activations", right=True, group=1),
            Column("", right=True, group=1),
            Column("memory", right=True, group=1),
            Column("parameters", right=True, group=2),
            Column("MACs", right=True, group=2),
            Column("FLOPs", right=True, group=2),
        ],
    )
    size = _size(network.input_shape)
    table.row(["input", "", size, *_memory(f.elements(network.input_shape)), "", "", ""])
    previous = first = None
    for step in network.steps(training=True):
        if step.outermost:
            kind = dataclasses.replace(step.item, name=""), step.before
            if isinstance(step.item, Branches) and kind == previous:
                _add_repeated(table, step, first)
            else:
                first = step.item.name
                _add_lines(table, step.item, step.before)
            previous = kind
    inference = list(network.steps())
    held = network.activations()
    parameters, operations = network.parameters(training=False), sum(_figures(step)[3] for step in inference)
    table.total(["total", "", "", *_memory(held), *map(plain, (parameters, network.macs(), operations))])
    heads = [step for step in network.steps(training=True) if isinstance(step.item, Head)]
    if heads:
        more = network.parameters() - parameters
        table.note(
            f"The totals are those of inference, without the {len(heads)} auxiliary heads and their {plain(more)} "
            f"parameters."
        )
    table.note(
        f"Per image, float32: {plain(held)} activations = {megabytes(held * f.FLOAT)} forward (input + every layer's "
        f"output{_and_joins(inference)}; ReLU works in place), {plain(parameters)} parameters = "
        f"{megabytes(parameters * f.FLOAT)}. MB = 10^6 bytes."
    )
    table.note(
        "FLOPs = 2 x MAC, products with padding included; a pool counts one FLOP per window element"
        + ("; normalisation, activations and joins none." if _has_more(inference) else ".")
    )
    if len(network.layers) == 1 and not getattr(network.layers[0], "bias", False):
        macs, outputs = network.macs(), f.elements(network.output_shape())
        table.note(
            f"Textbook count (m multiplications and m - 1 additions per output): "
            f"{plain(f.textbook_operations(macs, outputs))} operations; ours, 2 x MAC: {plain(operations)}."
        )
    for note in network.notes:
        table.note(note)
    return table


def _and_joins(found):
    return " and every join's" if any(isinstance(step.item, Branches) for step in found) else ""


def _has_more(found):
    """Is there anything that computes, but is counted nowhere?"""
    counted = ("conv", "conv_transpose", "max", "avg", "linear", "crop")
    return any(step.item.kind not in counted or getattr(step.item, "norm", False) for step in found)


def _add_repeated(table, step, first):
    """One line for a block that is the same as `first`, the one before: the sums of all that is in it."""
    figures = [_figures(inner) for inner in steps((step.item,), step.before)]
    held, *sums = (sum(column) for column in zip(*figures, strict=True))
    table.row([step.item.name, f"the same as {first}", _size(step.after), *_memory(held), *map(plain, sums)])


def _add_lines(table, item, before, margin="", dash=""):
    """The lines of a layer, or of a block and what is in it; each branch begins with a dash."""
    after = item.output_shape(before)
    held, *figures = _figures(Step(item, item.name, before, after))
    size = ["", "", "", ""] if isinstance(item, Head) else [_size(after), *_memory(held)]
    sums = ["", "", ""] if isinstance(item, Head | Branches) else map(plain, figures)
    table.row([f"{margin}{dash}{item.name}", item.words(), *size, *sums])
    margin += " " * len(dash) + "  "
    for path in inside(item):
        shape, dash = before, "- "
        for inner in path:
            _add_lines(table, inner, shape, margin, dash)
            shape, dash = inner.output_shape(shape), "  "
        if not path and item.join != "scale":
            table.row([f"{margin}- identity", "the block's input", _size(before), *[""] * 6])


def _figures(step):
    """(activations, parameters, MACs, FLOPs); of a head, which is no layer itself, nothing."""
    if isinstance(step.item, Head):
        return 0, 0, 0, 0
    if isinstance(step.item, Branches):
        return f.elements(step.after), 0, 0, 0
    item, before = step.item, step.before
    return f.elements(step.after), item.parameters(before), item.macs(before), item.flops(before)


def _memory(held):
    return plain(held), count(held), megabytes(held * f.FLOAT)
