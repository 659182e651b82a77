"""Outputs first, times after: every side's results against PyTorch's in float64.

The error of a result is max |y - reference| / max |reference|. fastconv passes if each result's error is at most twice
that of PyTorch's own result in the same dtype and layout, plus one rounding at the largest value (the accuracy class
"torch"), or at most what the chosen class allows. Peers pass if they compute in the dtype that they are asked for. NaN,
infinities and wrong shapes never pass.
"""

import math

import torch

from .operands import DTYPES

CLASS_BOUNDS = {"torch": 0.0, "fast": 2e-6, "fastest": 1.2e-5}
# Peers may choose algorithms less accurate than PyTorch's: four times its error, or what "fastest" allows.
_PEER_FACTOR = 4
# Whole networks: the layers' roundings add up on both sides, 1e-6 is usual. Gradients differ more: a rounding switches
# single units that sit at ReLU's kink, which costs VGG-16 about 1e-3 of some gradient's norm, ResNet-50 1e-2. PyTorch's
# two layouts differ for the same reason: twice that difference passes too.
NETWORK_BOUND, GRADIENT_BOUND = 1e-4, 1e-2


def error(result, reference):
    """max |result - reference| / max |reference|; infinite for a wrong shape or any NaN or infinity."""
    if result.shape != reference.shape:
        return math.inf
    if reference.numel() == 0:
        return 0.0
    largest = float(torch.linalg.vector_norm(reference, math.inf))
    difference = float(torch.linalg.vector_norm(result - reference, math.inf))  # NaN if there is one
    if not math.isfinite(difference):
        return math.inf
    return difference / largest if largest > 0 else (0.0 if difference == 0 else math.inf)


def errors(results, references):
    """One error for each result; infinite ones if there are more or fewer than expected."""
    if len(results) != len(references):
        return [math.inf] * len(references)
    return [error(r.detach(), e) for r, e in zip(results, references, strict=True)]


def rounding(dtype):
    """One rounding at the largest value; in float64, where the reference is rounded as often as the result, 32."""
    return torch.finfo(DTYPES[dtype]).eps * (32 if dtype == "f64" else 1)


def _exceeds(names, found, bounds):
    for name, mine, bound in zip(names, found, bounds, strict=True):
        if not mine <= bound:  # NaN fails too
            return f"{name}: error {mine:.2g} exceeds {bound:.2g}"
    return None


def complaint(names, ours, torchs, accuracy="torch", dtype="f32"):
    """Why fastconv's errors (of the results called `names`) do not pass beside torch's; None if they do."""
    return _exceeds(names, ours, [max(2 * e, CLASS_BOUNDS[accuracy]) + rounding(dtype) for e in torchs])


def peer_complaint(names, found, torchs, dtype="f32"):
    """Why a peer's errors do not pass: it computes something else, or in fewer bits than asked for."""
    loosest = CLASS_BOUNDS["fastest"] if dtype == "f32" else 0.0
    return _exceeds(names, found, [max(_PEER_FACTOR * e, loosest) + rounding(dtype) for e in torchs])


def torch_complaint(names, found, dtype="f32"):
    """Why PyTorch's own errors do not pass: half of the digits must be right (float32: 3.5e-4, which products in bf16
    miss)."""
    return _exceeds(names, found, [rounding(dtype) ** 0.5] * len(found))


def gradient_difference(ours, theirs):
    """The worst of two networks' gradients, by norm; None without gradients. Results are [output, gradients...]."""
    return max((_of_norm(mine, its) for mine, its in zip(ours[1:], theirs[1:], strict=True)), default=None)


def compare_networks(ours, theirs, usual=None):
    """Two networks' results, each [output, gradients...]. usual: by how much PyTorch's own gradients differ between
    layouts, if that is known.

    Returns {"ok", "difference" (largest, relative to the largest output), "gradient_difference" (of the norms, the
    worst gradient's), "top5_equal", "top5"}; the last three are None without gradients, or with fewer than six classes.
    """
    difference = error(ours[0].detach(), theirs[0].detach().double())
    gradient = gradient_difference(ours, theirs)
    found = {
        "difference": difference,
        "gradient_difference": gradient,
        "usual_gradient_difference": usual,
        "top5_equal": None,
        "top5": None,
        "ok": difference <= NETWORK_BOUND
        and (gradient is None or gradient <= max(GRADIENT_BOUND, 2 * (usual or 0.0))),
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
