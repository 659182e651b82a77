"""AlexNet: A. Krizhevsky, I. Sutskever, G. Hinton, "ImageNet classification with deep convolutional neural networks",
NIPS 2012, section 3.5 and figure 2. The input is 227 x 227: with the paper's 224, 55 x 55 outputs do not come out."""

from ..blocks import Network
from ..layers import Conv, Linear, MaxPool

_NOTES = (
    "Local response normalisation (no parameters, same shapes) and dropout (nothing at inference) are left out.",
    "Published shapes: 55x55x96, 27x27x256, 13x13x384, 6x6x256.",
)


def _alexnet(name, title, groups, note):
    return Network(
        name=name,
        title=title,
        source="Krizhevsky, Sutskever, Hinton, NIPS 2012, section 3.5",
        input_shape=(3, 227, 227),
        layers=(
            Conv("conv1", 96, 11, stride=4, relu=True),
            MaxPool("pool1", 3, stride=2),
            Conv("conv2", 256, 5, padding=2, groups=groups, relu=True),
            MaxPool("pool2", 3, stride=2),
            Conv("conv3", 384, 3, padding=1, relu=True),
            Conv("conv4", 384, 3, padding=1, groups=groups, relu=True),
            Conv("conv5", 256, 3, padding=1, groups=groups, relu=True),
            MaxPool("pool5", 3, stride=2),
            Linear("fc6", 4096, relu=True),
            Linear("fc7", 4096, relu=True),
            Linear("fc8", 1000),
        ),
        notes=(note, *_NOTES),
    )


ALEXNET = _alexnet(
    "alexnet",
    "AlexNet, grouped as in the paper",
    2,
    "Variant: conv2, conv4 and conv5 in two groups, one per GPU of 2012: 60,965,224 parameters (the paper rounds to "
    "60 million). alexnet-ungrouped has one group everywhere: 62,378,344.",
)
ALEXNET_UNGROUPED = _alexnet(
    "alexnet-ungrouped",
    "AlexNet, one group",
    1,
    "Variant: one group everywhere, as most courses count: 62,378,344 parameters. alexnet, with the paper's two "
    "groups in conv2, conv4 and conv5, has 60,965,224.",
)
