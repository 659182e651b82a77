"""`python -m benchmarks describe`: the table that every course shows, computed from the description."""

from . import formulas as f
from .table import Column, Table, count, megabytes, plain


def _size(shape):
    if len(shape) == 1:
        return str(shape[0])
    c, h, w = shape
    return f"{h}x{w}x{c}"


def describe(network):
    """The layers of `network` as a Table: output sizes, activation memory, parameters, MACs, FLOPs, per image."""
    table = Table(
        title=f"{network.title}: {network.source}",
        columns=[
            Column("layer"),
            Column("kind"),
            Column("output (HxWxC)", right=True),
            Column("activations", right=True),
            Column("", right=True),
            Column("memory", right=True),
            Column("parameters", right=True),
            Column("MACs", right=True),
            Column("FLOPs", right=True),
        ],
    )
    held = f.elements(network.input_shape)
    size = _size(network.input_shape)
    table.row(["input", "", size, plain(held), count(held), megabytes(held * f.FLOAT), "", "", ""])
    parameters = macs = operations = 0
    for layer, before, after in network.walk():
        size = f.elements(after)
        held += size
        parameters += layer.parameters(before)
        macs += layer.macs(before)
        operations += layer.flops(before)
        table.row(
            [
                layer.name,
                layer.words(),
                _size(after),
                plain(size),
                count(size),
                megabytes(size * f.FLOAT),
                plain(layer.parameters(before)),
                plain(layer.macs(before)),
                plain(layer.flops(before)),
            ]
        )
    held_bytes = megabytes(held * f.FLOAT)
    table.total(
        ["total", "", "", plain(held), count(held), held_bytes, plain(parameters), plain(macs), plain(operations)]
    )
    table.note(
        f"Per image, float32: {plain(held)} activations = {held_bytes} forward (input + every layer's output; ReLU "
        f"works in place), {plain(parameters)} parameters = {megabytes(parameters * f.FLOAT)}. MB = 10^6 bytes."
    )
    table.note("FLOPs = 2 x MAC, products with padding included; a pool counts one FLOP per window element.")
    if len(network.layers) == 1:
        outputs = f.elements(list(network.walk())[0][2])
        table.note(
            f"Textbook count (m multiplications and m - 1 additions per output): "
            f"{plain(f.textbook_operations(macs, outputs))} operations; ours, 2 x MAC: {plain(operations)}."
        )
    for note in network.notes:
        table.note(note)
    return table
