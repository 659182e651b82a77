"""LeNet-5: Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-based learning applied to document recognition",
Proceedings of the IEEE 86(11), 1998, section II.B and figure 2."""

from ..blocks import Network
from ..layers import AvgPool, Conv, Linear

LENET5 = Network(
    name="lenet5",
    title="LeNet-5",
    source="LeCun, Bottou, Bengio, Haffner 1998, Proc. IEEE 86(11), figure 2",
    input_shape=(1, 32, 32),
    layers=(
        Conv("C1", 6, 5, relu=True),
        AvgPool("S2", 2, stride=2),
        Conv("C3", 16, 5, relu=True),
        AvgPool("S4", 2, stride=2),
        Linear("C5", 120, relu=True),
        Linear("F6", 84, relu=True),
        Linear("output", 10),
    ),
    notes=(
        "Variant: ReLU instead of the paper's scaled tanh; S2 and S4 average without the paper's trained scale and "
        "bias; C3 sees all six maps (the paper connects some: 1,516 parameters instead of 2,416); a linear output "
        "instead of radial basis functions. 61,706 parameters.",
        "C5 is a 5x5 convolution over a 5x5 map in the paper, which is the linear layer written here.",
    ),
    image="digits",
)
