"""The convolution and pooling layers of six networks, every one in its place, and the distinct ones among them.

The networks are described under benchmarks/networks. Biases and activations are left out: they are chosen per
measurement. Sizes are without the batch: (channels, height, width).
"""

import dataclasses
from dataclasses import dataclass

from .. import formulas as f
from ..layers import pair
from ..networks import NETWORKS as DESCRIBED


@dataclass(frozen=True)
class Place:
    """A layer and the size of its input."""

    layer: object
    shape: tuple


def _places(name):
    for layer, shape, _ in DESCRIBED[name].walk():
        if layer.kind == "conv":
            yield Place(dataclasses.replace(layer, bias=False, relu=False), shape)
        elif layer.kind in ("max", "avg"):
            yield Place(layer, shape)


NETWORKS = {
    name: (DESCRIBED[name].source, tuple(_places(name)))
    for name in ("vgg16", "resnet50", "alexnet", "googlenet", "xception", "alphago")
}


@dataclass
class Distinct:
    """One computation, and where the networks use it: {network: names of its layers}."""

    layer: object
    shape: tuple
    uses: dict

    def name(self):
        """One use of it, in words: "vgg16 conv3_2"."""
        network, names = next(iter(self.uses.items()))
        return f"{network} {names[0]}"

    def share(self, network):
        """A figure to rank a network's layers by: the bytes it moves, or the FLOPs over 200 if that is more, of all
        its uses. (200 FLOPs are what an H200 does while it moves a byte, in bf16.)"""
        moved = 2 * (f.elements(self.shape) + f.elements(self.layer.output_shape(self.shape)))
        return len(self.uses.get(network, ())) * max(moved, self.layer.flops(self.shape) / 200)


def distinct(kinds, quick=False):
    """The distinct layers of some kinds ("conv", "max", "avg") of all networks, in the networks' order.

    `quick`: every size is cut down, which merges many of them.
    """
    found = {}
    for network, (_, places) in NETWORKS.items():
        for place in places:
            if place.layer.kind in kinds:
                place_cut = _cut(place) if quick else place
                key = dataclasses.replace(place_cut.layer, name=""), place_cut.shape
                entry = found.setdefault(key, Distinct(*key, {}))
                entry.uses.setdefault(network, []).append(place.layer.name)
    return list(found.values())


def leading(layers, network, count):
    """The `count` weightiest of the layers that `network` uses, and what they are ranked by: Distinct.share."""
    used = [layer for layer in layers if network in layer.uses]
    return sorted(used, key=lambda layer: -layer.share(network))[:count]


def _cut(place):
    """The layer with at most 8 channels or filters and maps of at most 12: a dry run on a CPU takes seconds."""
    c, h, w = place.shape
    layer = place.layer
    window = pair(layer.kernel if layer.kind == "conv" else layer.window)
    small = lambda size, least: max(min(size, 12), least)  # noqa: E731
    if layer.kind != "conv":
        return Place(layer, (min(c, 8), small(h, window[0]), small(w, window[1])))
    groups = 1 if layer.groups == 1 else 8 if layer.groups == c else 2
    k = min(layer.k, 8)
    return Place(dataclasses.replace(layer, k=k, groups=groups), (min(c, 8), small(h, window[0]), small(w, window[1])))
