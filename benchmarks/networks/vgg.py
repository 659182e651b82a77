"""VGG-16: K. Simonyan, A. Zisserman, "Very deep convolutional networks for large-scale image recognition",
ICLR 2015, arXiv:1409.1556, table 1, column D."""

from ..layers import Conv, Linear, MaxPool, Network


def _block(number, convolutions, k):
    names = [f"conv{number}_{i}" for i in range(1, convolutions + 1)]
    return (*(Conv(name, k, 3, padding=1, relu=True) for name in names), MaxPool(f"pool{number}", 2, stride=2))


VGG16 = Network(
    name="vgg16",
    title="VGG-16 (configuration D)",
    source="Simonyan and Zisserman, arXiv:1409.1556, table 1, column D",
    input_shape=(3, 224, 224),
    layers=(
        *_block(1, 2, 64),
        *_block(2, 2, 128),
        *_block(3, 3, 256),
        *_block(4, 3, 512),
        *_block(5, 3, 512),
        Linear("fc6", 4096, relu=True),
        Linear("fc7", 4096, relu=True),
        Linear("fc8", 1000),
    ),
    notes=(
        "138,357,544 parameters (the paper: 138 million, table 2). Dropout (nothing at inference) is left out.",
        "Course slides often end this table with 'total memory 24M * 4 bytes = 93 MB per image'. That does not add "
        "up: their own column (input, every convolution, pooling and linear output, as here) sums to 15.2M values, "
        "about 61 MB forward. Nor would counting every ReLU's output apart, as a network that does not work in "
        "place does, give 24M: that is 28.8M.",
    ),
)
