"""FCN-8s: J. Long, E. Shelhamer, T. Darrell, "Fully convolutional networks for semantic segmentation", CVPR 2015,
arXiv:1411.4038, section 4 and figure 3, on VGG-16. Pads and crops are those of the authors' published network."""

from ..blocks import Branches, Network
from ..layers import Conv, ConvTranspose, Crop
from .vgg import WIDTHS, stage


def _upsample(name, classes, kernel, stride):
    return ConvTranspose(name, classes, kernel, stride, bias=False)


def _fuse(name, skip, deep, crop):
    """A shallower map's scores, cropped, plus the deeper ones, upsampled."""
    return Branches(name, (skip, deep), "add", crop=crop)


def fcn8s(height=500, width=500, classes=21, filters=64):
    """The network for images of a size; every convolution's filters are in proportion to conv1_1's `filters`."""
    widths = [filters * width // WIDTHS[0] for width in WIDTHS]

    def part(number, kernels):
        padding = 100 if number == 1 else 1  # that the last maps are not smaller than a 7x7 kernel
        return stage(number, kernels, widths[number - 1], padding, ceil_mode=True)

    deepest = (
        *part(5, (3, 3, 3)),
        Conv("fc6", 64 * filters, 7, relu=True),
        Conv("fc7", 64 * filters, 1, relu=True),
        Conv("score_fr", classes, 1),
        _upsample("upscore2", classes, 4, 2),
    )
    deep = (
        *part(4, (3, 3, 3)),
        _fuse("fuse_pool4", (Conv("score_pool4", classes, 1),), deepest, crop=5),
        _upsample("upscore_pool4", classes, 4, 2),
    )
    return Network(
        name="fcn8s",
        title="FCN-8s on VGG-16",
        source="Long, Shelhamer, Darrell, arXiv:1411.4038, figure 3",
        input_shape=(3, height, width),
        layers=(
            *part(1, (3, 3)),
            *part(2, (3, 3)),
            *part(3, (3, 3, 3)),
            _fuse("fuse_pool3", (Conv("score_pool3", classes, 1),), deep, crop=9),
            _upsample("upscore8", classes, 16, 8),
            Crop("score", (height, width), 31),
        ),
        notes=(
            "PASCAL VOC's 20 classes and the background, a score of each for every pixel.",
            "The paper counts 134 million parameters of FCN-VGG16 (table 1): the layers up to fc7, 134,260,544.",
            "VGG-16's linear layers are convolutions here: 7x7 and 1x1. Dropout (nothing at inference) is left out.",
        ),
    )


FCN8S = fcn8s()
