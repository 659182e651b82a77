"""Xception: F. Chollet, "Xception: deep learning with depthwise separable convolutions", CVPR 2017, arXiv:1610.02357,
figure 5. The maps' sizes are those of the author's Keras code: conv1 and conv2 are not padded (299 -> 149 -> 147)."""

from ..blocks import Branches, Network
from ..layers import Activation, Conv, GlobalAvgPool, Linear, MaxPool


def _conv(name, k, kernel, stride=1, relu=True):
    return Conv(name, k, kernel, stride, bias=False, norm=True, relu=relu)


def _separable(name, c, k, relu=False):
    """A 3x3 convolution of each channel by itself, then a 1x1 convolution of all; normalised after both."""
    return (
        Conv(f"{name}_depthwise", c, 3, padding=1, groups=c, bias=False),
        Conv(f"{name}_pointwise", k, 1, bias=False, norm=True, relu=relu),
    )


def _add(name, *paths):
    return Branches(name, paths, "add")  # without ReLU: the next block begins with one


def _halving(number, c, widths, size, relu_first=True):
    """Two separable convolutions and a pool, beside a strided 1x1 convolution. Like TensorFlow's "same" the pool pads
    below and right only where `size`, the map's, is even."""
    first, second = widths
    pool = {"ceil_mode": True} if size % 2 == 0 else {"padding": 1}
    return _add(
        f"block{number}",
        (
            *([Activation("relu1", "relu")] if relu_first else []),
            *_separable("sepconv1", c, first),
            Activation("relu2", "relu"),
            *_separable("sepconv2", first, second),
            MaxPool("pool", 3, 2, **pool),
        ),
        (_conv("projection", second, 1, 2, relu=False),),
    )


def _middle(number):
    body = []
    for i in (1, 2, 3):
        body += [Activation(f"relu{i}", "relu"), *_separable(f"sepconv{i}", 728, 728)]
    return _add(f"block{number}", tuple(body), ())


def xception(size=299):
    """The network for images of size x size."""
    maps = (size - 3) // 2 + 1 - 2  # after conv1 and conv2

    def halving(number, c, widths, **options):
        nonlocal maps
        block = _halving(number, c, widths, maps, **options)
        maps = (maps + 1) // 2
        return block

    return Network(
        name="xception",
        title="Xception",
        source="Chollet, arXiv:1610.02357, figure 5",
        input_shape=(3, size, size),
        layers=(
            _conv("conv1", 32, 3, 2),
            _conv("conv2", 64, 3),
            halving(2, 64, (128, 128), relu_first=False),
            halving(3, 128, (256, 256)),
            halving(4, 256, (728, 728)),
            *(_middle(number) for number in range(5, 13)),
            halving(13, 728, (728, 1024)),
            *_separable("sepconv14_1", 1024, 1536, relu=True),
            *_separable("sepconv14_2", 1536, 2048, relu=True),
            GlobalAvgPool("pool"),
            Linear("fc", 1000),
        ),
        notes=("22,855,952 parameters, as the paper counts (table 3). Keras adds the running means: 22,910,480.",),
    )


XCEPTION = xception()
