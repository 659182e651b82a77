"""Operands that several test files make alike."""

import torch


def randn(*shape, seed=0, dtype=torch.float64):
    """Normal values, the same for the same shape and seed whatever the dtype."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)
