"""VGG: K. Simonyan, A. Zisserman, "Very deep convolutional networks for large-scale image recognition", ICLR 2015,
arXiv:1409.1556, table 1: configurations A, B, C, D and E."""

from ..blocks import Network
from ..layers import Conv, Linear, MaxPool

# filters of each stage's convolutions, the same in all configurations
WIDTHS = (64, 128, 256, 512, 512)


def stage(number, kernels, k, first_padding=1, ceil_mode=False):
    """Convolutions of k filters that keep the size of the maps, then a pool; `first_padding` is that of conv<n>_1."""
    paddings = [first_padding, *(kernel // 2 for kernel in kernels[1:])]
    sizes = enumerate(zip(kernels, paddings, strict=True), 1)
    return (
        *(Conv(f"conv{number}_{i}", k, kernel, padding=pad, relu=True) for i, (kernel, pad) in sizes),
        MaxPool(f"pool{number}", 2, stride=2, ceil_mode=ceil_mode),
    )


def _vgg(name, column, kernels, *notes):
    layers = sum(map(len, kernels)) + 3
    return Network(
        name=name,
        title=f"VGG-{layers} (configuration {column})",
        source=f"Simonyan and Zisserman, arXiv:1409.1556, table 1, column {column}",
        input_shape=(3, 224, 224),
        layers=(
            *(
                layer
                for n, (sizes, k) in enumerate(zip(kernels, WIDTHS, strict=True), 1)
                for layer in stage(n, sizes, k)
            ),
            Linear("fc6", 4096, relu=True),
            Linear("fc7", 4096, relu=True),
            Linear("fc8", 1000),
        ),
        notes=(*notes, "Dropout (nothing at inference) is left out."),
    )


VGG11 = _vgg(
    "vgg11",
    "A",
    [(3,), (3,), (3, 3), (3, 3), (3, 3)],
    "132,863,336 parameters (the paper: 133 million, table 2).",
)
VGG13 = _vgg("vgg13", "B", [(3, 3)] * 5, "133,047,848 parameters (the paper: 133 million, table 2).")
VGG16_C = _vgg(
    "vgg16-c",
    "C",
    [(3, 3), (3, 3), (3, 3, 1), (3, 3, 1), (3, 3, 1)],
    "133,638,952 parameters (the paper: 134 million, table 2). The last convolution of stages 3 to 5 is 1x1.",
)
VGG16 = _vgg(
    "vgg16",
    "D",
    [(3, 3), (3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)],
    "138,357,544 parameters (the paper: 138 million, table 2).",
    "Course slides often end this table with 'total memory 24M * 4 bytes = 93 MB per image'. That does not add "
    "up: their own column (input, every convolution, pooling and linear output, as here) sums to 15.2M values, "
    "about 61 MB forward. Nor would counting every ReLU's output apart, as a network that does not work in "
    "place does, give 24M: that is 28.8M.",
)
VGG19 = _vgg(
    "vgg19",
    "E",
    [(3, 3), (3, 3), (3,) * 4, (3,) * 4, (3,) * 4],
    "143,667,240 parameters (the paper: 144 million, table 2).",
)
