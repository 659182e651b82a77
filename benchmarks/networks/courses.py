"""Two networks as first courses on convolution build them, for pictures of 32x32 such as CIFAR-10's (A. Krizhevsky,
"Learning multiple layers of features from tiny images", 2009). The first has the pattern of Stanford's CS231n,
"Convolutional networks", section "Layer patterns": INPUT -> [CONV -> RELU -> POOL]*2 -> FC."""

from ..blocks import Network
from ..layers import AvgPool, Conv, Linear, MaxPool

COURSE = Network(
    name="course",
    title="INPUT -> [CONV -> RELU -> POOL] x 2 -> FC",
    source="the pattern of CS231n, Convolutional networks, Layer patterns",
    input_shape=(3, 32, 32),
    layers=(
        Conv("conv1", 12, 3, padding=1, relu=True),
        MaxPool("pool1", 2, stride=2),
        Conv("conv2", 24, 3, padding=1, relu=True),
        MaxPool("pool2", 2, stride=2),
        Linear("fc", 10),
    ),
    notes=("12 filters come from the course's CIFAR-10 example (32x32x3 to 32x32x12); the second layer doubles them.",),
)
COURSE_SAME = Network(
    name="course-same",
    title="'same' convolutions and average pools",
    source="the first network of many courses, as a makeModel() writes it",
    input_shape=(3, 32, 32),
    layers=(
        Conv("conv1", 32, 5, padding="same", relu=True),
        AvgPool("pool1", 2, stride=2),
        Conv("conv2", 64, 5, padding="same", relu=True),
        AvgPool("pool2", 2, stride=2),
        Linear("fc1", 128, relu=True),
        Linear("fc2", 10),
    ),
    notes=("The maps keep their size in convolutions and halve in pools: 32, 16, 8.",),
)
