"""The convolution and pooling layers of six networks, every one in its place, and the distinct ones among them.

VGG-16 and AlexNet are described under benchmarks/networks. The others branch, which the descriptions there do not, so
their layers are listed here from the papers' tables. Biases and activations are left out: they are chosen per
measurement. Sizes are without the batch: (channels, height, width).
"""

import dataclasses
from dataclasses import dataclass

from .. import formulas as f
from ..layers import AvgPool, Conv, MaxPool, pair
from ..networks import NETWORKS as DESCRIBED


@dataclass(frozen=True)
class Place:
    """A layer and the size of its input."""

    layer: object
    shape: tuple


def _conv(name, c, size, k, kernel, stride=1, padding=0, groups=1):
    return Place(Conv(name, k, kernel, stride, padding, groups, bias=False), (c, size, size))


def _described(name):
    for layer, shape, _ in DESCRIBED[name].walk():
        if layer.kind == "conv":
            yield Place(dataclasses.replace(layer, bias=False, relu=False), shape)
        elif layer.kind in ("max", "avg"):
            yield Place(layer, shape)


def _resnet50():
    """He et al., arXiv:1512.03385, table 1. As in torchvision, the 3x3 of a stage's first block has the stride."""
    yield _conv("conv1", 3, 224, 64, 7, 2, 3)
    yield Place(MaxPool("pool1", 3, 2, 1), (64, 112, 112))
    c, size = 64, 56
    for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), 2):
        for block in range(blocks):
            stride = 2 if block == 0 and stage > 2 else 1
            name = f"conv{stage}_{block + 1}"
            yield _conv(f"{name}.1x1", c, size, width, 1)
            yield _conv(f"{name}.3x3", width, size, width, 3, stride, 1)
            yield _conv(f"{name}.expand", width, size // stride, 4 * width, 1)
            if block == 0:
                yield _conv(f"{name}.shortcut", c, size, 4 * width, 1, stride)
            c, size = 4 * width, size // stride
    yield Place(AvgPool("pool", 7, 1), (2048, 7, 7))


# Szegedy et al., arXiv:1409.4842, table 1: input channels, map, 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool projection.
INCEPTIONS = {
    "3a": (192, 28, 64, 96, 128, 16, 32, 32),
    "3b": (256, 28, 128, 128, 192, 32, 96, 64),
    "4a": (480, 14, 192, 96, 208, 16, 48, 64),
    "4b": (512, 14, 160, 112, 224, 24, 64, 64),
    "4c": (512, 14, 128, 128, 256, 24, 64, 64),
    "4d": (512, 14, 112, 144, 288, 32, 64, 64),
    "4e": (528, 14, 256, 160, 320, 32, 128, 128),
    "5a": (832, 7, 256, 160, 320, 32, 128, 128),
    "5b": (832, 7, 384, 192, 384, 48, 128, 128),
}


def _googlenet():
    yield _conv("conv1", 3, 224, 64, 7, 2, 3)
    yield Place(MaxPool("pool1", 3, 2, 0, ceil_mode=True), (64, 112, 112))
    yield _conv("conv2.reduce", 64, 56, 64, 1)
    yield _conv("conv2", 64, 56, 192, 3, 1, 1)
    yield Place(MaxPool("pool2", 3, 2, 0, ceil_mode=True), (192, 56, 56))
    for name, (c, size, one, reduce3, three, reduce5, five, projection) in INCEPTIONS.items():
        if name in ("4a", "5a"):
            yield Place(MaxPool(f"pool{int(name[0]) - 1}", 3, 2, 0, ceil_mode=True), (c, 2 * size, 2 * size))
        yield _conv(f"{name}.1x1", c, size, one, 1)
        yield _conv(f"{name}.3x3reduce", c, size, reduce3, 1)
        yield _conv(f"{name}.3x3", reduce3, size, three, 3, 1, 1)
        yield _conv(f"{name}.5x5reduce", c, size, reduce5, 1)
        yield _conv(f"{name}.5x5", reduce5, size, five, 5, 1, 2)
        yield Place(MaxPool(f"{name}.pool", 3, 1, 1), (c, size, size))
        yield _conv(f"{name}.projection", c, size, projection, 1)
    yield Place(AvgPool("pool5", 7, 1), (1024, 7, 7))


def _xception():
    """Chollet, arXiv:1610.02357, figure 5. conv1 and conv2 have no padding: 299 -> 149 -> 147 (the author's code)."""

    def separable(name, c, size, k):
        yield _conv(f"{name}.depthwise", c, size, c, 3, 1, 1, groups=c)
        yield _conv(f"{name}.pointwise", c, size, k, 1)

    yield _conv("conv1", 3, 299, 32, 3, 2)
    yield _conv("conv2", 32, 149, 64, 3)
    c, size, number = 64, 147, 3
    blocks = [(128, 128), (256, 256), (728, 728), *[(728, 728, 728)] * 8, (728, 1024)]
    for widths in blocks:
        entered, number_of_block = c, number
        for k in widths:
            yield from separable(f"sepconv{number}", c, size, k)
            c, number = k, number + 1
        if len(widths) == 2:  # all but the middle flow: pooled, with a strided shortcut
            yield Place(MaxPool(f"pool{number - 1}", 3, 2, 1), (c, size, size))
            yield _conv(f"shortcut{number_of_block}", entered, size, c, 1, 2)
            size = (size + 1) // 2
    for k in (1536, 2048):
        yield from separable(f"sepconv{number}", c, size, k)
        c, number = k, number + 1
    yield Place(AvgPool("pool", size, 1), (c, size, size))


def _alphago():
    """Silver et al., Nature 529 (2016), Methods, "Neural network architecture": the policy network, 192 filters."""
    yield _conv("conv1", 48, 19, 192, 5, 1, 2)
    for number in range(2, 13):
        yield _conv(f"conv{number}", 192, 19, 192, 3, 1, 1)
    yield _conv("conv13", 192, 19, 1, 1)


NETWORKS = {
    "vgg16": (DESCRIBED["vgg16"].source, tuple(_described("vgg16"))),
    "resnet50": ("He, Zhang, Ren, Sun, arXiv:1512.03385, table 1; strides as in torchvision", tuple(_resnet50())),
    "alexnet": (DESCRIBED["alexnet"].source, tuple(_described("alexnet"))),
    "googlenet": ("Szegedy et al., arXiv:1409.4842, table 1", tuple(_googlenet())),
    "xception": ("Chollet, arXiv:1610.02357, figure 5", tuple(_xception())),
    "alphago": ("Silver et al., Nature 529, 2016, Methods: the policy network", tuple(_alphago())),
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
    return Place(
        dataclasses.replace(layer, k=k, groups=groups), (min(c, 8), small(h, window[0]), small(w, window[1]))
    )
