"""Squeeze-and-excitation: J. Hu et al., "Squeeze-and-excitation networks", CVPR 2018, arXiv:1709.01507, section 3."""

from ..blocks import scaled
from ..layers import Activation, GlobalAvgPool, Linear

REDUCTION = 16


def squeeze_excite(name, channels):
    """Maps scaled by a gate that a bottleneck of channels / 16 computes from their averages."""
    return scaled(
        name,
        GlobalAvgPool("squeeze"),
        Linear("reduce", channels // REDUCTION, relu=True),
        Linear("expand", channels),
        Activation("gate", "sigmoid"),
    )
