"""ZFNet: M. Zeiler, R. Fergus, "Visualizing and understanding convolutional networks", ECCV 2014, arXiv:1311.2901,
figure 3. The figure gives sizes and strides; the pads and the rounding here are those that make its maps."""

from ..blocks import Network
from ..layers import Conv, Linear, MaxPool

ZFNET = Network(
    name="zfnet",
    title="ZFNet",
    source="Zeiler and Fergus, arXiv:1311.2901, figure 3",
    input_shape=(3, 224, 224),
    layers=(
        Conv("conv1", 96, 7, stride=2, padding=1, relu=True),
        MaxPool("pool1", 3, stride=2, ceil_mode=True),
        Conv("conv2", 256, 5, stride=2, relu=True),
        MaxPool("pool2", 3, stride=2, ceil_mode=True),
        Conv("conv3", 384, 3, padding=1, relu=True),
        Conv("conv4", 384, 3, padding=1, relu=True),
        Conv("conv5", 256, 3, padding=1, relu=True),
        MaxPool("pool5", 3, stride=2),
        Linear("fc6", 4096, relu=True),
        Linear("fc7", 4096, relu=True),
        Linear("fc8", 1000),
    ),
    notes=(
        "Published maps: 110x110x96, 55x55x96, 26x26x256, 13x13x256, 13x13x384, 13x13x256, 6x6x256.",
        "Contrast normalisation (no parameters, same shapes) and dropout (nothing at inference) are left out.",
    ),
)
