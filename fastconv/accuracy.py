"""The accuracy class that convolutions are run in.

* ``"torch"``: error at most twice PyTorch's own. Direct convolution, matrix products and Winograd
  F(2x2, 3x3), which needs 2.25 times fewer multiplications.
* ``"fast"`` (the default): error at most 2e-6 of the largest output in float32, 2 to 5 times PyTorch's own (its filter
  gradients are more exact than PyTorch's); 4e-6 where single values of the input dwarf the rest. Also Winograd F(4x4, 3x3) (4 times fewer) and F(2x2, 5x5). That it serves
  as a default is what tests/test_default_accuracy.py shows: torch.testing's tolerances, inputs of large magnitude,
  offset or spread, and a training that follows PyTorch's loss step by step.
* ``"fastest"``: error at most 1.2e-5 of the largest output in float32. Also F(6x6, 3x3) (5.06 times fewer) and
  F(4x4, 5x5).

The class travels with each call as an operator's argument and is kept for its backward. float64 and integers are not
affected: their convolutions never use Winograd.
"""

CLASSES = ("torch", "fast", "fastest")

# A plain global, process-wide: torch.compile guards on it and recompiles.
current = "fast"


def set_accuracy(name):
    """Choose the accuracy class of the convolutions that follow: "torch", "fast" or "fastest" (see this module).

    Raises ValueError for another name.
    """
    global current
    if name not in CLASSES:
        raise ValueError(f"fastconv: unknown accuracy class {name!r}; known are: {', '.join(CLASSES)}")
    current = name


def get_accuracy():
    """The accuracy class in force."""
    return current
