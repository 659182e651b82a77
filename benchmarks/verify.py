"""Outputs first, times after: every layer's results on both sides against PyTorch's in float64.

The error of a result is max |y - reference| / max |reference|. fastconv passes if each result's error is at most twice
that of PyTorch's own float32 result in the same layout, plus 2^-23, one rounding at the largest value (the accuracy
class "torch"), or at most what the chosen class allows. NaN, infinities and wrong shapes never pass.
"""

import dataclasses
import math

import torch

from . import peers
from .models import LAYOUTS

FLOOR = 2.0**-23
CLASS_BOUNDS = {"torch": 0.0, "fast": 2e-6, "fastest": 1.2e-5}
# Whole networks: the layers' roundings add up on both sides, 1e-6 is usual. Gradients differ more: a rounding switches
# single units that sit at ReLU's kink, which costs VGG-16 about 1e-3 of some gradient's norm.
NETWORK_BOUND, GRADIENT_BOUND = 1e-4, 1e-2


def error(result, reference):
    """max |result - reference| / max |reference|; infinite for a wrong shape or any NaN or infinity."""
    if result.shape != reference.shape or not bool(torch.isfinite(result).all()):
        return math.inf
    if reference.numel() == 0:
        return 0.0
    largest = float(reference.abs().max())
    difference = float((result.double() - reference).abs().max())
    return difference / largest if largest > 0 else (0.0 if difference == 0 else math.inf)


class Operands:
    """A layer's tensors in both layouts and in float64: the input that the real picture gives, the model's weights.

    `dy` (training only) is normal noise, but zero where the output is within rounding of ReLU's kink: there the two
    sides and the reference may rightly disagree on whether the gradient passes. `first` layers want no gradient of
    their input.
    """

    def __init__(self, layer, x, module, training, first, seed):
        self.layer, self.training = layer, training
        parameters = (None, None) if module is None else (module.weight.detach(), _data(module.bias))
        self._base = [x.detach(), *parameters]
        self._wants = [training and not first, training, training]
        self._dy = None
        if training:
            with torch.no_grad():
                linear = dataclasses.replace(layer, relu=False) if getattr(layer, "relu", False) else layer
                y = peers.torch_layer(linear, *(None if t is None else t.double() for t in self._base))
            self._dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed))
            if linear is not layer:
                self._dy[y.abs() < 1e-5 * y.abs().max()] = 0
        self._made = {}

    def of(self, layout):
        """(x, weight, bias, dy) in "nchw", "nhwc" or "f64"."""
        if layout == "f64":
            return self._make(lambda t: t.double())
        if layout not in self._made:
            convert = layout != "nchw"  # the tensors are NCHW already: no copy of 100 million weights
            self._made[layout] = self._make(
                lambda t: t.clone(memory_format=LAYOUTS[layout]) if convert and t.dim() == 4 else t.detach()
            )
        return self._made[layout]

    def _make(self, change):
        tensors = []
        for tensor, wants in zip(self._base, self._wants, strict=True):
            tensors.append(None if tensor is None else change(tensor).requires_grad_(wants))
        return (*tensors, None if self._dy is None else change(self._dy))

    def names(self):
        """What run() returns, in words."""
        present = [t is not None and wants for t, wants in zip(self._base, self._wants, strict=True)]
        gradients = [f"gradient of {n}" for n, p in zip(("input", "weight", "bias"), present, strict=True) if p]
        return ["output", *gradients]

    def run(self, function, layout):
        """The results of a side: [output, gradients...]."""
        with torch.set_grad_enabled(self.training):
            return peers.forward_and_gradients(function, *self.of(layout))


def _data(parameter):
    return None if parameter is None else parameter.detach()


def reference(operands):
    return [t.detach() for t in operands.run(peers.call("torch", operands.layer), "f64")]


def errors(operands, function, layout, references):
    """One error for each result."""
    results = operands.run(function, layout)
    if len(results) != len(references):
        return [math.inf] * len(references)
    return [error(r.detach(), e) for r, e in zip(results, references, strict=True)]


def complaint(names, ours, torchs, accuracy="torch"):
    """Why fastconv's errors (of the results called `names`) do not pass beside torch's; None if they do."""
    for i, (mine, theirs) in enumerate(zip(ours, torchs, strict=True)):
        bound = max(2 * theirs, CLASS_BOUNDS[accuracy]) + FLOOR
        if not mine <= bound:  # NaN fails too
            return f"{names[i]}: error {mine:.2g} exceeds {bound:.2g}"
    return None


def compare_networks(ours, theirs):
    """Two networks' results, each [output, gradients...].

    Returns {"ok", "difference" (largest, relative to the largest output), "gradient_difference" (of the norms, the
    worst gradient's), "top5_equal", "top5"}; the last three are None without gradients, or with fewer than six classes.
    """
    difference = error(ours[0].detach(), theirs[0].detach().double())
    gradients = [_of_norm(mine, its) for mine, its in zip(ours[1:], theirs[1:], strict=True)]
    found = {
        "difference": difference,
        "gradient_difference": max(gradients, default=None),
        "top5_equal": None,
        "top5": None,
        "ok": difference <= NETWORK_BOUND and all(g <= GRADIENT_BOUND for g in gradients),
    }
    mine, its = ours[0], theirs[0]
    if mine.dim() == 2 and mine.shape == its.shape and mine.shape[1] > 5:
        found["top5"] = mine.topk(5).indices.tolist()
        found["top5_equal"] = found["top5"] == its.topk(5).indices.tolist()
        found["ok"] = found["ok"] and found["top5_equal"]
    return found


def _of_norm(mine, its):
    """||mine - its|| / ||its||; infinite for NaN and infinities."""
    if not bool(torch.isfinite(mine).all()):
        return math.inf
    norm, difference = float(its.norm()), float((mine - its).norm())
    return difference / norm if norm > 0 else (0.0 if difference == 0 else math.inf)
