"""Transformed filters kept between calls: what is kept, how much, and how to promise that a weight stays as it is.

Some algorithms transform the filter before they use it (Winograd multiplies it by a matrix, direct convolution reorders
it). The transformed filter is kept and used again only if a 128-bit hash of the weight's contents, taken at each call,
is the same, so no way of changing a weight can go unnoticed. It is kept from the second call on: a training loop, whose
weights never come twice, fills no memory. A filter goes when its weight does, or when it was not used for longest and
the limit (``FASTCONV_FILTER_CACHE_MB``, 1024 by default) is reached.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from . import ops


def _operators():
    ops.extension()  # raises with the cure if it is missing
    return torch.ops.fastconv


class FilterCacheInfo(NamedTuple):
    """Numbers of :func:`filter_cache_info`; ``bytes`` and ``limit`` are in bytes."""

    filters: int
    bytes: int
    hits: int
    misses: int
    limit: int


def filter_cache_info() -> FilterCacheInfo:
    """How many transformed filters are kept, their size, and how often they served."""
    return FilterCacheInfo(*_operators().filter_cache_statistics())


def set_filter_cache_limit(megabytes: int) -> None:
    """Keep at most this many megabytes of transformed filters; 0 keeps none."""
    if megabytes < 0:
        raise ValueError(f"fastconv: the limit must not be negative, but is {megabytes} MB")
    _operators().set_filter_cache_limit(int(megabytes) << 20)


def clear_filter_cache() -> None:
    """Forget every transformed filter, and set the counts of hits and misses to zero."""
    _operators().clear_filter_cache()


def freeze(module: torch.nn.Module) -> torch.nn.Module:
    """Promise that the module's convolution weights stay as they are; returns the module.

    Saves the hash at each call: reading the weight once, at 12 GB/s from memory. Breaking the promise gives results of
    the old weight, so :func:`unfreeze` first. A weight that is replaced by another tensor is not frozen.
    """
    return _freeze(module, True)


def unfreeze(module: torch.nn.Module) -> torch.nn.Module:
    """Take :func:`freeze` back; returns the module."""
    return _freeze(module, False)


def _freeze(module: torch.nn.Module, frozen: bool) -> torch.nn.Module:
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"fastconv: expected a torch.nn.Module, but got {type(module).__name__}")
    for layer in module.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
            _operators().freeze_weight(layer.weight.detach(), frozen)
    return module
