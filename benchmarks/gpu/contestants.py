"""One group becomes contestants: every variant of a layer in every layout, with its row and a call to be timed."""

from dataclasses import dataclass, field

from .. import formulas as f
from ..models import LAYOUTS
from . import peers, problems
from .device import TooLarge, copies_for


@dataclass
class Contestant:
    """`call(i)` runs on the i-th copy of the operands; `row` is what is known before timing."""

    row: dict
    call: object
    copies: int
    sampler: object = None
    samples: list = field(default_factory=list)


def allowed(usable, kind, variant, layout):
    """Whether the mode's check passed for it; `usable` is None while that check runs."""
    return usable is None or (kind, variant, layout) in usable


def uses(layer):
    """{network: how many of its layers this is}"""
    return {network: len(names) for network, names in layer.uses.items()}


def _row(group, **more):
    """`layer` is one use of it; `uses` counts all."""
    layer = group.layer
    name = layer.name() if layer.uses else ""
    return {"layer": name, "uses": uses(layer), "batch": group.batch, "mode": group.mode, **more}


def convolutions(group, mode, device, arena, usable=None):
    """Contestants of a convolution. Operands are (x, weight, bias, dy), in as many copies as cold caches need.

    Raises:
        TooLarge: the operands do not fit into the arena.
    """
    layer, shape, batch = group.layer.layer, group.layer.shape, group.batch
    x, weight, y = problems.conv_sizes(layer, shape, batch)
    found, texts = [], set()
    for layout in LAYOUTS:
        rotation = copies_for(device, problems.conv_bytes(layer, shape, batch, mode))
        sets = arena.sets(rotation["copies"], (x, layout), (weight, layout), ((layer.k,),), (y, layout))
        for variant, call in peers.conv_calls(layer).items():
            fused = variant.startswith("forward_bias_relu")
            direction = peers.direction_of(variant)
            text = problems.conv_text(layer, shape, batch, mode, layout, direction, fused)
            if (variant, text) in texts or not allowed(usable, "conv", variant, layout):
                continue  # both layouts are the same, or the mode's check did not pass
            texts.add((variant, text))
            row = _row(
                group,
                kind="conv",
                variant=variant,
                problem=text,
                layout=layout,
                flops=layer.flops(shape, batch),
                minimum_bytes=problems.conv_bytes(layer, shape, batch, mode, fused),
                copies=len(sets),
                cold=rotation["cold"] and len(sets) == rotation["copies"],
            )
            row["pass"] = direction
            found.append(Contestant(row, lambda i, call=call, sets=sets: call(*sets[i]), len(sets)))
    return found


def pools(group, mode, device, arena, usable=None):
    """Contestants of a pool. Operands are (x, dy, the places of the maxima)."""
    layer, shape, batch = group.layer.layer, group.layer.shape, group.batch
    x, y = (batch, *shape), (batch, *layer.output_shape(shape))
    found, texts = [], set()
    for layout in LAYOUTS:
        rotation = copies_for(device, problems.pool_bytes(layer, shape, batch, mode))
        sets = arena.sets(rotation["copies"], (x, layout), (y, layout))
        with_places = [(x, dy, peers.max_indices(layer, x) if layer.kind == "max" else None) for x, dy in sets]
        for variant, call in peers.pool_calls(layer, shape).items():
            direction = peers.direction_of(variant)
            text = problems.pool_text(layer, shape, batch, mode, layout, direction)
            if (variant, text) in texts or not allowed(usable, layer.kind, variant, layout):
                continue
            texts.add((variant, text))
            row = _row(
                group,
                kind=layer.kind,
                variant=variant,
                problem=text,
                layout=layout,
                flops=layer.flops(shape, batch),
                minimum_bytes=problems.pool_bytes(layer, shape, batch, mode, direction),
                copies=len(sets),
                cold=rotation["cold"] and len(sets) == rotation["copies"],
            )
            row["pass"] = direction
            found.append(Contestant(row, lambda i, call=call, sets=with_places: call(*sets[i]), len(sets)))
    return found


def gemm(m, n, k, mode, device, arena, used=None):
    """The contestant of one matrix product, a (m, k) times b (n, k) transposed; m is cut to what the arena holds.

    Raises:
        TooLarge: not even one row fits.
    """
    rows = min(m, (arena.numel() - n * k - 1024) // k)  # 1024: more than aligning the operands costs
    if rows < 1:
        raise TooLarge("a matrix product's operands exceed the memory set aside")
    moved = (rows * k + n * k + rows * n) * mode.bytes
    rotation = copies_for(device, moved)
    sets = arena.sets(rotation["copies"], ((rows, k),), ((n, k),))
    row = {
        "uses": used or {},
        "mode": mode.name,
        "kind": "gemm",
        "variant": "mm",
        "problem": f"gemm m{rows}n{n}k{k} {mode.word}{' tf32' if mode.math == 'tf32' else ''}",
        "flops": f.flops(rows * n * k),
        "minimum_bytes": moved,
        "copies": len(sets),
        "cold": rotation["cold"] and len(sets) == rotation["copies"],
    }
    if rows < m:
        row["m_wanted"] = m
    return Contestant(row, lambda i: peers.gemm_call(*sets[i]), len(sets))


def copy(count, device, arena):
    """The contestant of a device copy of `count` bytes, read and written."""
    elements = count // arena.element_size()
    rotation = copies_for(device, 2 * count)
    sets = arena.sets(rotation["copies"], ((elements,),), ((elements,),))
    row = {
        "uses": {},
        "kind": "copy",
        "variant": "copy_",
        "problem": f"copy b{count}",
        "flops": 0,
        "minimum_bytes": 2 * count,
        "copies": len(sets),
        "cold": rotation["cold"] and len(sets) == rotation["copies"],
    }
    return Contestant(row, lambda i: sets[i][1].copy_(sets[i][0]), len(sets))
