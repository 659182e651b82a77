"""AlphaGo's policy network: D. Silver et al., "Mastering the game of Go with deep neural networks and tree search",
Nature 529, 2016, Methods, "Neural network architecture"; k = 192 filters, as in the matches."""

from ..blocks import Network
from ..layers import Activation, Bias, Conv

ALPHAGO = Network(
    name="alphago",
    title="AlphaGo's policy network",
    source="Silver et al., Nature 529, 2016, Methods",
    input_shape=(48, 19, 19),
    layers=(
        Conv("conv1", 192, 5, padding="same", relu=True),
        *(Conv(f"conv{number}", 192, 3, padding="same", relu=True) for number in range(2, 13)),
        Conv("conv13", 1, 1, bias=False),
        Bias("bias"),
        Activation("softmax", "softmax"),
    ),
    notes=(
        "48 feature planes of the board in, the probability of a move at each of its 361 points out. The last "
        "convolution's bias differs from point to point.",
    ),
    image="random",
)
