"""GoogLeNet: C. Szegedy et al., "Going deeper with convolutions", CVPR 2015, arXiv:1409.4842, table 1, figure 3 and,
for the auxiliary classifiers, section 5."""

from ..blocks import Head, Network, concat
from ..layers import AvgPool, Conv, GlobalAvgPool, Linear, MaxPool

# of table 1: #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool proj
MODULES = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


def inception(name):
    one, reduce3, three, reduce5, five, projection = MODULES[name]
    return concat(
        f"inception_{name}",
        Conv("1x1", one, 1, relu=True),
        (Conv("3x3_reduce", reduce3, 1, relu=True), Conv("3x3", three, 3, padding=1, relu=True)),
        (Conv("5x5_reduce", reduce5, 1, relu=True), Conv("5x5", five, 5, padding=2, relu=True)),
        (MaxPool("pool", 3, stride=1, padding=1), Conv("pool_proj", projection, 1, relu=True)),
    )


def _auxiliary(name):
    return Head(
        name,
        (
            AvgPool("pool", 5, stride=3),
            Conv("conv", 128, 1, relu=True),
            Linear("fc", 1024, relu=True),
            Linear("classifier", 1000),
        ),
    )


GOOGLENET = Network(
    name="googlenet",
    title="GoogLeNet (Inception v1) with its two auxiliary classifiers",
    source="Szegedy et al., arXiv:1409.4842, table 1 and section 5",
    input_shape=(3, 224, 224),
    layers=(
        Conv("conv1", 64, 7, stride=2, padding=3, relu=True),
        MaxPool("pool1", 3, stride=2, ceil_mode=True),
        Conv("conv2_reduce", 64, 1, relu=True),
        Conv("conv2", 192, 3, padding=1, relu=True),
        MaxPool("pool2", 3, stride=2, ceil_mode=True),
        inception("3a"),
        inception("3b"),
        MaxPool("pool3", 3, stride=2, ceil_mode=True),
        inception("4a"),
        _auxiliary("auxiliary1"),
        inception("4b"),
        inception("4c"),
        inception("4d"),
        _auxiliary("auxiliary2"),
        inception("4e"),
        MaxPool("pool4", 3, stride=2, ceil_mode=True),
        inception("5a"),
        inception("5b"),
        GlobalAvgPool("pool5"),
        Linear("classifier", 1000),
    ),
    notes=(
        "6,998,552 parameters at inference, 13,378,280 with the auxiliary classifiers, which run in training only.",
        "The paper's table adds up to 1.5 billion multiply-adds: it prints 34 million for conv1, whose 7x7x3 kernels "
        "do 118, and 54 for 5a, whose sizes give 51.",
        "Local response normalisation (no parameters, same shapes) and dropout (nothing at inference) are left out.",
        "Libraries differ: torchvision's has batch normalisation and 3x3 kernels where the paper has 5x5.",
    ),
)
