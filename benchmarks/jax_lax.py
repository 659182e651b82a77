"""JAX as a peer: jax.lax compiled by XLA for the CPU, in both layouts. Forward passes only.

XLA's threads are as many as the process may run on when JAX starts, so it takes part only where all are asked for.
"""

import importlib.util
import os

import torch

from . import contestants as c
from . import geometry as g


_KINDS = ("conv", "max", "avg", "linear")


def absent():
    return None if importlib.util.find_spec("jax") else "not installed: pip install jax"


def usable_cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def contestant(case, t, layout, threads):
    """
    Raises:
        Refused: a gradient, fewer threads than cores, or an average that XLA has no operator for.
    """
    if case.direction != "fwd":
        raise c.Refused("JAX is measured in forward passes only")
    if threads != usable_cores():
        raise c.Refused("XLA's threads cannot be limited to fewer than all")
    if case.dtype == "f64":
        raise c.Refused("JAX computes in float32 unless told otherwise for the whole process")
    if case.kind not in _KINDS or g.is_adaptive(case.fields):
        raise c.Refused(f"JAX is measured in {', '.join(_KINDS)} only, and with windows of one size")
    if g.activation(case.fields)[0] not in ("none", "relu"):
        raise c.Refused("JAX is measured with ReLU or no activation")
    import jax

    arrays = [None if v is None else _array(v, layout) for v in (t.x, t.weight, t.bias, t.residual)]
    function = jax.jit(_function(case.fields, layout))
    call = lambda: function(*arrays).block_until_ready()  # noqa: E731
    call()

    def results():
        y = torch.from_dlpack(call())
        return [y.permute(0, 3, 1, 2) if layout == "nhwc" and y.dim() == 4 else y]

    return c.Contestant("jax", layout, call, results)


def _array(tensor, layout):
    import jax

    tensor = tensor.detach()
    if layout == "nhwc" and tensor.dim() == 4:
        tensor = tensor.permute(0, 2, 3, 1)
    return jax.dlpack.from_dlpack(tensor.contiguous())


def _function(fields, layout):
    import jax
    import jax.numpy as jnp
    from jax import lax

    channels = 1 if layout == "nchw" else 3

    def spread(h, w, other):
        return (other, other, h, w) if layout == "nchw" else (other, h, w, other)

    def pooled(x, start, operation):
        pads = g.pads(fields)
        plane = zip("hw", (fields["h"], fields["w"]), g.window(fields), g.output_plane(fields), pads[:2], strict=True)
        sides = []
        for axis, size, reach, count, pad in plane:
            reach = fields.get(f"dilation_{axis}", 1) * (reach - 1) + 1
            sides.append((pad, max(pad, (count - 1) * fields[f"stride_{axis}"] + reach - size - pad)))
        return lax.reduce_window(
            x, start, operation, spread(*g.window(fields), 1), spread(*g.stride(fields), 1), spread(*sides, (0, 0)),
            window_dilation=spread(*g.dilation(fields), 1),
        )  # fmt: skip

    if fields["kind"] == "avg" and (
        fields["ceil_mode"] or fields.get("divisor") or not fields.get("count_include_pad", True)
    ):
        raise c.Refused("XLA sums windows; the divisors of ceil_mode, nopad and div are torch's own")

    def run(x, weight, bias, residual):
        if fields["kind"] == "max":
            return pooled(x, -jnp.inf, lax.max)
        if fields["kind"] == "avg":
            return pooled(x, jnp.zeros((), x.dtype), lax.add) / (fields["r"] * fields["s"])
        if fields["kind"] == "linear":
            y = x.reshape(len(x), -1) @ weight.T
            y = y if bias is None else y + bias
        else:
            top, left, bottom, right = g.pads(fields)
            numbers = ("NCHW", "OIHW", "NCHW") if layout == "nchw" else ("NHWC", "OHWI", "NHWC")
            y = lax.conv_general_dilated(
                x, weight, g.stride(fields), ((top, bottom), (left, right)), rhs_dilation=g.dilation(fields),
                dimension_numbers=numbers, feature_group_count=fields["groups"],
            )  # fmt: skip
            y = y if bias is None else y + (bias.reshape(1, -1, 1, 1) if channels == 1 else bias)
        y = y if residual is None else y + residual
        return jax.nn.relu(y) if fields.get("activation") == "relu" else y

    return run
