"""Which devices and dtypes have a kernel, as modules need to know it before they call one.

`FF.*` never asks here: an operator refuses by itself, in words. A *converted* module asks, because
`convert(fallback=...)` promised the user to say aloud, or not at all, that a layer stays with torch.
"""

import warnings

import torch

from . import _extension

_DTYPES = {
    "f32": torch.float32,
    "f64": torch.float64,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "u8": torch.uint8,
    "i8": torch.int8,
    "i16": torch.int16,
    "i32": torch.int32,
    "i64": torch.int64,
}

FALLBACKS = ("warn", "error", "silent")


def _read_table():
    """{kind: {(device type, dtype)}} of the rows that exist, or None if the extension cannot be loaded: then every
    question is answered with yes, so that the first use of an operator raises with the cure instead of falling back.
    """
    try:
        rows = _extension.load().algorithms()
    except _extension.ExtensionError:
        return None
    table = {"conv": set(), "pool": set()}
    for row in rows:
        if row["device"] == "simulated":  # no device of torch's: simulation.py
            continue
        pairs = {(row["device"], _DTYPES[name]) for name in row["dtypes"]}
        table[row["kind"]] |= pairs | {("meta", dtype) for _, dtype in pairs}  # shapes need no kernel
    return {kind: frozenset(pairs) for kind, pairs in table.items()}


_TABLE = _read_table()
_said = set()


def refusal(kind, device_type, dtype):
    """Why no row of `kind` ("conv" | "pool") takes such tensors, in words; None if one does."""
    if _TABLE is None or (device_type, dtype) in _TABLE[kind]:
        return None
    devices = sorted({device for device, _ in _TABLE[kind]} - {"meta"})
    what = "convolution" if kind == "conv" else "pooling"
    if device_type not in devices:
        return f"no {what} kernel for device '{device_type}' was built (there are: {', '.join(devices)})"
    return f"no {what} kernel takes {dtype} on '{device_type}'"


def use_torch(kind, fallback, tensor):
    """True if a converted module must hand `tensor` to torch. Warns once per reason if `fallback` is "warn".

    With "error" the answer is always no: the operator itself then raises and lists what each row refuses.
    """
    if fallback == "error" or not isinstance(tensor, torch.Tensor):
        return False
    if _TABLE is None or (tensor.device.type, tensor.dtype) in _TABLE[kind]:
        return False
    if fallback == "warn":
        reason = refusal(kind, tensor.device.type, tensor.dtype)
        if reason not in _said:
            _said.add(reason)
            warnings.warn(f"fastconv: {reason}; torch runs such layers instead", RuntimeWarning, stacklevel=4)
    return True
