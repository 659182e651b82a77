"""Which layers `convert` may touch, and the reason in words where it may not."""

import inspect
from fnmatch import fnmatchcase

import torch
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedTensorMixin

from . import nn as fnn
from ._support import refusal

REPLACEMENTS = {
    torch.nn.Conv2d: (fnn.Conv2d, "conv"),
    torch.nn.ConvTranspose2d: (fnn.ConvTranspose2d, "conv"),
    torch.nn.MaxPool2d: (fnn.MaxPool2d, "pool"),
    torch.nn.AvgPool2d: (fnn.AvgPool2d, "pool"),
    torch.nn.LPPool2d: (fnn.LPPool2d, "pool"),
    torch.nn.AdaptiveMaxPool2d: (fnn.AdaptiveMaxPool2d, "pool"),
    torch.nn.AdaptiveAvgPool2d: (fnn.AdaptiveAvgPool2d, "pool"),
}
_FORWARDS = ("forward", "_conv_forward", "__call__", "_call_impl", "__getattr__")
_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def replacement(module):
    """(torch class, our class, kind) for a layer that `convert` is about, quantized look-alikes included; else None."""
    for theirs, (ours, kind) in REPLACEMENTS.items():
        if isinstance(module, theirs):
            return theirs, ours, kind
    name = type(module).__name__
    if type(module).__module__.startswith("torch.ao.nn.") and name in ("Conv2d", "ConvReLU2d"):
        return torch.nn.Conv2d, fnn.Conv2d, "conv"
    return None


def hooks(module):
    """The hooks registered on `module`, in words; '' if there are none."""
    found = [name.strip("_").replace("_", " ") for name in _HOOKS if len(module.__dict__.get(name) or ())]
    return ", ".join(found)


def why_not_touched(module, base):
    """Why the class of `module`, a kind of `base`, cannot be exchanged; None if it can."""
    cls = type(module)
    if isinstance(module, torch.jit.ScriptModule):
        return "is a ScriptModule: convert the model before scripting it"
    if any(c.__module__.startswith("torch.ao.") for c in cls.__mro__):
        return "belongs to torch's quantization"
    if isinstance(module, LazyModuleMixin) or any(
        isinstance(p, UninitializedTensorMixin) for p in module._parameters.values()
    ):
        return "is lazy and not initialized yet: run the model once, then convert it"
    if torch.nn.utils.parametrize.is_parametrized(module):
        return f"has parametrizations ({', '.join(module.parametrizations)})"
    pre_hooks = {type(hook).__name__ for hook in module._forward_pre_hooks.values()}
    if pre_hooks & {"WeightNorm", "SpectralNorm"}:
        return f"its weight is recomputed by {', '.join(sorted(pre_hooks))}"
    if hooks(module):
        return f"has hooks ({hooks(module)})"
    for name in _FORWARDS:
        if name in module.__dict__:
            return f"has {name} patched on the instance"
        if not cls.__module__.startswith("fastconv.") and _defined(cls, name) is not _defined(
            _ours_or(base, cls), name
        ):
            return f"{cls.__name__} overrides {name}"
    return None


def why_not_replaced(module):
    """Why this convolution or pooling layer stays with torch, in words; None if it can be replaced."""
    base, _, kind = replacement(module)
    reason = why_not_touched(module, base)
    if reason or kind == "pool":
        return reason
    weight = module._parameters.get("weight")
    if weight is None or inspect.getattr_static(type(module), "weight", None) is not None:
        return "its weight is not a parameter of its own"
    for tensor in filter(lambda p: p is not None, module._parameters.values()):
        if type(tensor) is not torch.nn.Parameter:
            return f"has a parameter of type {type(tensor).__name__}"
        if tensor.layout is not torch.strided:
            return f"has a parameter of layout {tensor.layout}"
    ours = isinstance(module, fnn.Conv2d | fnn.ConvTranspose2d)
    if not ours and type(module) is not base and "algorithm" in module.__dict__:
        return "uses the attribute name 'algorithm' for something else"
    return None


def unsupported(module):
    """Why no kernel takes a layer's parameters (device, dtype), in words; None if one does."""
    _, _, kind = replacement(module)
    weight = module._parameters.get("weight") if kind == "conv" else None
    return None if weight is None else refusal(kind, weight.device.type, weight.dtype)


def why_not_folded(conv, norm):
    """Why `norm`, which follows `conv`, cannot be folded into it; None if it can."""
    reason = why_not_touched(norm, torch.nn.BatchNorm2d)
    if reason:
        return reason
    if norm.running_mean is None or norm.running_var is None:
        return "keeps no running statistics"
    if norm.num_features != conv.out_channels:
        return f"has {norm.num_features} features for {conv.out_channels} channels"
    tensors = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    if not all(t is None or type(t) in (torch.Tensor, torch.nn.Parameter) and t.is_floating_point() for t in tensors):
        return "has parameters that are no plain floating-point tensors"
    if not conv.weight.is_floating_point():
        return "follows a convolution of integers"
    return None


class Selection:
    """`include` and `exclude`: names (glob patterns), classes and predicates. A match covers all that lies inside."""

    def __init__(self, model, include, exclude):
        self.names = {}
        for name, module in model.named_modules(remove_duplicate=False):
            self.names.setdefault(module, []).append(name)
        self.unmatched = []
        self._included = None if include is None else self._matches(_listed("include", include))
        self._excluded = set() if exclude is None else self._matches(_listed("exclude", exclude))

    def name(self, module):
        return self.names[module][0] or "(the model)"

    def includes(self, module):
        """Is this a layer to replace?"""
        return module not in self._excluded and (self._included is None or module in self._included)

    def excludes(self, module):
        return module in self._excluded

    def _matches(self, items):
        found = set()
        for item in items:
            matched = [m for m, names in self.names.items() if any(_matches(item, name, m) for name in names)]
            for module in matched:
                found.update(module.modules())
            if isinstance(item, str) and not matched:
                self.unmatched.append(item)
        return found


def _listed(word, items):
    if not isinstance(items, list | tuple | set | frozenset):
        items = [items]
    for item in items:
        is_class = isinstance(item, type)
        known = isinstance(item, str) or (callable(item) and not isinstance(item, torch.nn.Module))
        if not known or (is_class and not issubclass(item, torch.nn.Module)):
            raise TypeError(
                f"{word} takes module names (glob patterns), torch.nn.Module classes and predicates of (name, module), "
                f"alone or in a list; but got {item!r}"
            )
    return items


def _matches(item, name, module):
    if isinstance(item, str):
        return fnmatchcase(name, item)
    if isinstance(item, type):
        return isinstance(module, item)
    return bool(item(name, module))


def _defined(cls, name):
    return inspect.getattr_static(cls, name, None)


def _ours_or(base, cls):
    """Our class if `cls` derives from it (a user's subclass of fastconv.nn.Conv2d), else torch's."""
    for theirs, (ours, _) in REPLACEMENTS.items():
        if theirs is base and issubclass(cls, ours):
            return next(c for c in cls.__mro__ if c.__module__.startswith("fastconv."))
    return base
