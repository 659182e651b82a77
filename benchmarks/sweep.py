"""`--sweep batch=1,8 dtype=fp32,bf16 layout=nchw,nhwc pass=fwd,grad_input`: every combination of the values given."""

import itertools

from . import activations, cases
from .nearest import did_you_mean

_DTYPES = {"fp32": "f32", "fp64": "f64", "fp16": "f16", "float32": "f32", "float64": "f64", "float16": "f16",
           "half": "f16", "bfloat16": "bf16", **{name: name for name in cases.DTYPES}}  # fmt: skip
_PASSES = {"forward": "fwd", **{name: name for name in cases.PASSES}}
_ACCURACIES = ("torch", "fast", "fastest")


class BadSweep(ValueError):
    """A sweep that cannot be read; the text says what can."""


def _batch(word):
    if not word.isdecimal() or int(word) < 1:
        raise BadSweep(f"batch '{word}' is not a positive whole number")
    return int(word)


def _one_of(key, known):
    spelled = known if isinstance(known, dict) else {name: name for name in known}

    def parse(word):
        if word not in spelled:
            raise BadSweep(f"unknown {key} '{word}'; {did_you_mean(word, spelled)}")
        return spelled[word]

    return parse


KEYS = {
    "batch": _batch,
    "dtype": _one_of("dtype", _DTYPES),
    "layout": _one_of("layout", cases.LAYOUTS),
    "pass": _one_of("pass", _PASSES),
    "accuracy": _one_of("accuracy", _ACCURACIES),
}


def parse(words):
    """['batch=1,8', 'pass=fwd'] -> {'batch': [1, 8], 'pass': ['fwd']}

    Raises:
        BadSweep: an unknown key or value (naming the nearest), a key given twice, no value.
    """
    found = {}
    for word in words:
        key, equals, values = word.partition("=")
        if not equals:
            raise BadSweep(f"'{word}' is not of the form key=value,value; keys are {', '.join(KEYS)}")
        if key not in KEYS:
            raise BadSweep(f"unknown sweep key '{key}'; {did_you_mean(key, KEYS)}")
        if key in found:
            raise BadSweep(f"sweep key '{key}' is given twice")
        found[key] = list(dict.fromkeys(KEYS[key](value) for value in values.split(",") if value))
        if not found[key]:
            raise BadSweep(f"sweep key '{key}' has no value")
    return found


def apply(base, sweep):
    """Every case of `base` under every combination of the values, but those that do not exist: a pool has no weight,
    some activations (silu, gelu, hardswish) have no gradient pass of their own, but take part in training, and linear
    layers are torch's on both sides, in float32, forward or training. The batch of cases with tensors of
    their own (cases.of_network) is not theirs to change."""
    found = {}
    for case in base:
        for values in itertools.product(*sweep.values()):
            changed = _changed(case, dict(zip(sweep, values, strict=True)))
            if changed is not None:
                found.setdefault(changed.key(), changed)
    return list(found.values())


def _changed(case, values):
    direction = values.get("pass", case.direction)
    if not case.convolves and direction == "grad_weight":
        return None
    if direction in ("grad_input", "grad_weight") and activations.needs_input(case.fields):
        return None
    if case.kind == "linear":
        differs = values.get("dtype", "f32") != "f32" or values.get("layout") == "nhwc" or direction == "grad_input"
        return None if differs else case.replace(direction=direction)
    case = case.replace(direction=direction)
    if "dtype" in values:
        case = case.having(dtype=values["dtype"])
    if "batch" in values and values["batch"] != case.fields["n"]:
        case = case.having(n=values["batch"])
    if "layout" in values:
        case = case.replace(layouts=(values["layout"],))
    if "accuracy" in values and case.convolves:
        case = case.replace(accuracy=values["accuracy"])
    return case
