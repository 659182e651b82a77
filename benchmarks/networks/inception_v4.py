"""Inception-v4: C. Szegedy, S. Ioffe, V. Vanhoucke, A. Alemi, "Inception-v4, Inception-ResNet and the impact of
residual connections on learning", AAAI 2017, arXiv:1602.07261, figures 3 to 9 and table 1."""

from ..blocks import Network, concat
from ..layers import AvgPool, Conv, GlobalAvgPool, Linear, MaxPool


def _conv(name, k, kernel, stride=1, valid=False):
    """Convolution, batch normalisation, ReLU; "same" unless marked V in the figures."""
    padding = 0 if valid or stride > 1 else "same"
    return Conv(name, k, kernel, stride, padding, bias=False, norm=True, relu=True)


def _average(k):
    return AvgPool("pool", 3, 1, 1, count_include_pad=False), _conv("pool_1x1", k, 1)


_STEM = (
    _conv("conv1", 32, 3, stride=2),
    _conv("conv2", 32, 3, valid=True),
    _conv("conv3", 64, 3),
    concat("stem1", MaxPool("pool", 3, 2), _conv("3x3", 96, 3, stride=2)),
    concat(
        "stem2",
        (_conv("a_1x1", 64, 1), _conv("a_3x3", 96, 3, valid=True)),
        (
            _conv("b_1x1", 64, 1),
            _conv("b_7x1", 64, (7, 1)),
            _conv("b_1x7", 64, (1, 7)),
            _conv("b_3x3", 96, 3, valid=True),
        ),
    ),
    concat("stem3", _conv("3x3", 192, 3, stride=2), MaxPool("pool", 3, 2)),
)


def _inception_a(number):
    return concat(
        f"inception_a{number}",
        _average(96),
        _conv("1x1", 96, 1),
        (_conv("3x3_reduce", 64, 1), _conv("3x3", 96, 3)),
        (_conv("double_3x3_reduce", 64, 1), _conv("double_3x3_1", 96, 3), _conv("double_3x3_2", 96, 3)),
    )


_REDUCTION_A = concat(
    "reduction_a",
    MaxPool("pool", 3, 2),
    _conv("3x3", 384, 3, stride=2),
    (_conv("double_3x3_reduce", 192, 1), _conv("double_3x3_1", 224, 3), _conv("double_3x3_2", 256, 3, stride=2)),
)


def _inception_b(number):
    return concat(
        f"inception_b{number}",
        _average(128),
        _conv("1x1", 384, 1),
        (_conv("7x7_reduce", 192, 1), _conv("7x7_1x7", 224, (1, 7)), _conv("7x7_7x1", 256, (7, 1))),
        (
            _conv("double_7x7_reduce", 192, 1),
            _conv("double_7x7_1_1x7", 192, (1, 7)),
            _conv("double_7x7_1_7x1", 224, (7, 1)),
            _conv("double_7x7_2_1x7", 224, (1, 7)),
            _conv("double_7x7_2_7x1", 256, (7, 1)),
        ),
    )


_REDUCTION_B = concat(
    "reduction_b",
    MaxPool("pool", 3, 2),
    (_conv("3x3_reduce", 192, 1), _conv("3x3", 192, 3, stride=2)),
    (
        _conv("7x7_reduce", 256, 1),
        _conv("7x7_1x7", 256, (1, 7)),
        _conv("7x7_7x1", 320, (7, 1)),
        _conv("7x7_3x3", 320, 3, stride=2),
    ),
)


def _inception_c(number):
    def fork(name):
        return concat(name, _conv("1x3", 256, (1, 3)), _conv("3x1", 256, (3, 1)))

    return concat(
        f"inception_c{number}",
        _average(256),
        _conv("1x1", 256, 1),
        (_conv("3x3_reduce", 384, 1), fork("3x3")),
        (
            _conv("double_3x3_reduce", 384, 1),
            _conv("double_3x3_1x3", 448, (1, 3)),
            _conv("double_3x3_3x1", 512, (3, 1)),
            fork("double_3x3"),
        ),
    )


INCEPTION_V4 = Network(
    name="inception-v4",
    title="Inception-v4",
    source="Szegedy, Ioffe, Vanhoucke, Alemi, arXiv:1602.07261, figures 3 to 9",
    input_shape=(3, 299, 299),
    layers=(
        *_STEM,
        *(_inception_a(number) for number in range(1, 5)),
        _REDUCTION_A,
        *(_inception_b(number) for number in range(1, 8)),
        _REDUCTION_B,
        *(_inception_c(number) for number in range(1, 4)),
        GlobalAvgPool("pool"),
        Linear("fc", 1000),
    ),
    notes=(
        "Padding does not count in the averages, as in the authors' TensorFlow. 42,679,816 parameters.",
        "Dropout (nothing at inference) is left out.",
    ),
)
