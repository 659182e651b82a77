"""Edge detection by differences of horizontal neighbours: I. Goodfellow, Y. Bengio, A. Courville, "Deep Learning",
MIT Press 2016, section 9.2, figure 9.6. A network of one tiny convolution, with a count worked out in print."""

from ..blocks import Network
from ..layers import Conv

EDGE_DETECTION = Network(
    name="edge-detection",
    title="edge detection, a kernel two wide and one high",
    source="Goodfellow, Bengio, Courville, Deep Learning, 2016, figure 9.6",
    input_shape=(1, 280, 320),
    layers=(Conv("difference", 1, (1, 2), bias=False),),
    notes=("The book counts 267,960 operations: 319 x 280 outputs of two multiplications and one addition each.",),
)
