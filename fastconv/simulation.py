"""Running the CUDA kernels without a GPU (`fastconv.simulated_gpu`)."""

from . import ops


class simulated_gpu:
    """`with fastconv.simulated_gpu():` sends CPU tensors through the CUDA kernels, in the emulator of csrc/simt.

    The very source of csrc/cuda runs on the CPU: every block, every thread, with barriers and shared memory. That is for
    learning and testing: it is hundreds of times slower than the CPU rows, and says nothing of a GPU's speed. Results
    differ from a GPU's only by rounding.

    Holds for all threads of the process, for operators called inside; a backward called outside runs on the CPU rows.
    Problems that no CUDA kernel takes (integers, for instance) raise NotImplementedError with the reason of every row.
    """

    def __init__(self):
        self._previous = []

    def __enter__(self):
        extension = ops.extension()
        self._previous.append(extension.simulated_gpu())
        extension.set_simulated_gpu(True)
        return self

    def __exit__(self, *exception):
        ops.extension().set_simulated_gpu(self._previous.pop())
