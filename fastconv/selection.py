"""Forcing an algorithm (`fastconv.algorithm`). What would run, and why: see explanation.py."""

from . import ops

# A plain global, process-wide: torch.compile guards on it and recompiles, where a ContextVar breaks the graph.
_forced = "auto"


def check_algorithm(name):
    """Raises TypeError or ValueError (listing the known names) unless `name` is "auto" or a known algorithm."""
    if not isinstance(name, str):
        raise TypeError(f"fastconv: algorithm must be a str, but got {type(name).__name__}")
    if name != "auto" and name not in ops.convolution_algorithms:
        raise ValueError(
            f"fastconv: unknown algorithm '{name}'; known are: auto, {', '.join(ops.convolution_algorithms)}"
        )
    return name


def resolve(name):
    """The algorithm that an operator's argument `algorithm=name` means now: itself, or the forced one for "auto"."""
    return _forced if name == "auto" else name


class algorithm:
    """`with fastconv.algorithm("im2col"):` forces convolutions called inside to run that algorithm.

    The choice is made in the forward pass and kept for its backward, wherever that runs. Passes that the algorithm
    does not list choose as usual; a listed one that refuses the problem raises NotImplementedError with the reason of
    every row. An explicit `algorithm=` of a call wins. Holds for all threads of the process. Pooling is not affected.

    Raises ValueError at once for an unknown name, listing the known ones.
    """

    def __init__(self, name):
        self.name = check_algorithm(name)
        self._previous = []

    def __enter__(self):
        global _forced
        self._previous.append(_forced)
        _forced = self.name
        return self

    def __exit__(self, *exception):
        global _forced
        _forced = self._previous.pop()
