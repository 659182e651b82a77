"""Clocks and memory of the device that is measured: an NVIDIA GPU, or the CPU for dry runs of the same code.

A *call* is a function of a number i that runs an operator once on the i-th copy of its operands and returns the result.
A *sampler* times a call: sample() gives seconds per call, `timer` says how.
"""

import contextlib
import math
import time

import torch

# A GPU's estimate of a call includes the host's time to launch it, some 10 to 60 us for these operators. Kernels under
# 50 us need graphs; below this estimate a kernel may be one of them.
_GRAPH_BELOW = 150e-6
# A capture that fails may leave torch's allocator unable to free its caches when memory runs short.
_MOST_FAILED_CAPTURES = 8
_MOST_CALLS = 512  # in one sample; a graph of them is captured in some 10 ms
# The caches hold nothing of a call's operands after other copies of this many times their size have been touched.
_ROTATION = 2.0
_ALIGNMENT = 256  # bytes, of every operand, as the caching allocator gives at least


class TooLarge(RuntimeError):
    """The operands do not fit into the arena."""


class _Events:
    """CUDA events around many calls in a row. One untimed call goes ahead, so that the GPU is busy, and the host ahead
    of it, when the first event is recorded."""

    timer = "events"

    def __init__(self, cuda, call, copies, calls):
        self._cuda, self._call, self._copies, self.calls = cuda, call, copies, calls
        self._events = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
        self._next = 0
        self._held = [None] * copies  # results live as long as their operands wait: they rotate through memory too
        for _ in range(copies + 1):
            self._run()  # all memory for results is allocated now: cudaMalloc would stall a sample

    def _run(self):
        i = self._next % self._copies
        self._held[i] = self._call(i)
        self._next += 1

    def sample(self):
        begin, end = self._events
        self._run()
        begin.record()
        for _ in range(self.calls):
            self._run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e-3 / self.calls  # of milliseconds

    def close(self):
        self._held = None


class _Graph:
    """The same with all calls of a sample captured in one CUDA graph, which leaves 1 to 2 us between kernels."""

    timer = "graph"

    def __init__(self, cuda, call, copies, calls):
        self._cuda, self.calls = cuda, calls
        self._events = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
        stream = cuda.current_stream()
        self._graph = cuda.CUDAGraph()
        try:
            with cuda.graph(self._graph):
                held = [None] * copies  # as above
                for i in range(calls):
                    held[i % copies] = call(i % copies)
        finally:
            cuda.set_stream(stream)  # a capture that fails leaves its own stream behind as the current one
        self._graph.replay()
        cuda.synchronize()

    def sample(self):
        begin, end = self._events
        self._graph.replay()
        begin.record()
        self._graph.replay()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e-3 / self.calls

    def close(self):
        self._graph = None


class Cuda:
    """An NVIDIA GPU. `cuda` is torch.cuda, or what a test puts in its place."""

    kind = "cuda"
    timing = (
        "CUDA events around many calls after one untimed call; operators estimated below 150 us (host time included) "
        "as one CUDA graph per sample, replayed"
    )

    def __init__(self, index=0, cuda=torch.cuda):
        self._cuda, self._failed_captures = cuda, 0
        cuda.set_device(index)
        self.torch_device = torch.device("cuda", index)
        self.properties = cuda.get_device_properties(index)
        self.name = cuda.get_device_name(index)
        self.cache_bytes = getattr(self.properties, "L2_cache_size", 0) or 64 << 20
        # per dtype; a fortieth of a large GPU's memory, enough for every layer at batch 128 in float32
        self.arena_bytes = min(4 << 30, self.properties.total_memory // 12)

    def synchronize(self):
        self._cuda.synchronize()

    def once(self, call):
        """Seconds of one call, waiting for it included: of the first call, what autotuning took."""
        self.synchronize()
        begin = time.perf_counter()
        call(0)
        self.synchronize()
        return time.perf_counter() - begin

    def sampler(self, call, copies, seconds):
        """(sampler, why no graph was captured or None) of a call that ran before; a sample takes about `seconds`."""
        trial = _Events(self._cuda, call, 1, 3)
        estimate = trial.sample()
        if estimate < 1e-3:  # short ones suffer from what the first sample still had to wait for
            estimate = min(estimate, trial.sample())
        trial.close()
        calls = max(1, min(_MOST_CALLS, math.ceil(seconds / max(estimate, 1e-7))))
        failure = None
        if estimate < _GRAPH_BELOW and self._failed_captures >= _MOST_FAILED_CAPTURES:
            failure = f"not tried after {self._failed_captures} captures that failed"
        elif estimate < _GRAPH_BELOW:
            try:
                # a cycle through all copies at least, since a replay starts with the first again
                return _Graph(self._cuda, call, copies, max(copies, calls)), None
            except RuntimeError as error:
                failure = str(error).splitlines()[0] if str(error) else type(error).__name__
                self._failed_captures += 1
                self.synchronize()
        return _Events(self._cuda, call, copies, calls), failure

    def release(self):
        """Give the memory of results and captured graphs back."""
        self._cuda.empty_cache()

    def peak_memory(self):
        return self._cuda.max_memory_allocated()


class _Wall:
    timer = "perf_counter"

    def __init__(self, call, copies, calls):
        self._call, self._copies, self.calls = call, copies, calls

    def sample(self):
        begin = time.perf_counter()
        for i in range(self.calls):
            self._call(i % self._copies)
        return (time.perf_counter() - begin) / self.calls

    def close(self):
        self._call = None


class Cpu:
    """The CPU in the GPU's place: for dry runs, its numbers are no benchmark's."""

    kind = "cpu"
    timing = "perf_counter"
    name = "cpu"
    cache_bytes = 64 << 10
    arena_bytes = 8 << 20
    properties = None

    def __init__(self):
        self.torch_device = torch.device("cpu")

    def synchronize(self):
        pass

    def once(self, call):
        begin = time.perf_counter()
        call(0)
        return time.perf_counter() - begin

    def sampler(self, call, copies, seconds):
        estimate = self.once(call)
        return _Wall(call, copies, max(1, min(_MOST_CALLS, math.ceil(seconds / max(estimate, 1e-7))))), None

    def release(self):
        pass

    def peak_memory(self):
        return None


def copies_for(device, bytes_per_call):
    """How many copies of the operands a call cycles through, for cold caches: {"copies", "cold"}."""
    copies = math.ceil(_ROTATION * device.cache_bytes / bytes_per_call)
    return {"copies": max(1, min(_MOST_CALLS, copies)), "cold": copies <= _MOST_CALLS}


class Arena:
    """Normal random numbers of one dtype, filled once: operands are views of it, so that preparing a layer costs no
    time. Copies never overlap."""

    def __init__(self, device, dtype, size_bytes=None):
        per = torch.empty((), dtype=dtype).element_size()
        self._step = _ALIGNMENT // per
        self._data = torch.empty((size_bytes or device.arena_bytes) // per, dtype=dtype, device=device.torch_device)
        self._data.normal_()
        self._used = 0

    def numel(self):
        return self._data.numel()

    def element_size(self):
        return self._data.element_size()

    def restart(self):
        """Hand out the memory from the start again."""
        self._used = 0

    def take(self, sizes, layout="nchw"):
        """A dense tensor of these sizes (four of them for "nhwc"), not overlapping any since restart().

        Raises:
            TooLarge: it does not fit.
        """
        count = math.prod(sizes)
        if self._used + count > self._data.numel():
            raise TooLarge(f"operands exceed the {self._data.numel() * self._data.element_size() >> 20} MiB set aside")
        flat = self._data.narrow(0, self._used, count)
        self._used += -(-count // self._step) * self._step
        if layout == "nchw":
            return flat.view(sizes)
        n, c, h, w = sizes
        return flat.view(n, h, w, c).permute(0, 3, 1, 2)

    def sets(self, copies, *operands):
        """Up to `copies` tuples of tensors, one for each (sizes, layout): as many as fit, one at least."""
        self.restart()
        found = []
        with contextlib.suppress(TooLarge):
            for _ in range(copies):
                found.append(tuple(self.take(*operand) for operand in operands))
        if not found:
            self.restart()
            for operand in operands:
                self.take(*operand)  # raises
        return found


def open_device(kind):
    """Cuda or Cpu. Raises RuntimeError if there is no NVIDIA GPU that torch can use."""
    if kind == "cpu":
        return Cpu()
    if not torch.cuda.is_available() or torch.version.cuda is None:
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
        raise RuntimeError(f"no NVIDIA GPU that torch {torch.__version__} ({built}) can use")
    return Cuda()
