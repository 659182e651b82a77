"""A stand-in for torch.cuda: what benchmarks.gpu calls of it, on the CPU's clock."""

import contextlib
import time
import types


class FakeCuda:
    """torch.cuda's calls with their signatures, on the CPU's clock. A capture runs its calls; a replay waits 1 us."""

    def __init__(self, captures=True):
        self.captures, self.stream, self.capturing = captures, "main", 0
        self.Event = lambda enable_timing=False: _FakeEvent()
        self.CUDAGraph = _FakeGraph

    def set_device(self, index):
        assert index == 0

    def get_device_properties(self, index):
        return types.SimpleNamespace(
            L2_cache_size=64 << 10, total_memory=96 << 20, major=9, minor=0, multi_processor_count=132, uuid="1-2"
        )

    def get_device_name(self, index):
        return "NVIDIA H200"

    def current_stream(self):
        return self.stream

    def set_stream(self, stream):
        self.stream = stream

    def synchronize(self):
        assert not self.capturing

    empty_cache = synchronize

    def max_memory_allocated(self):
        return 1

    @contextlib.contextmanager
    def graph(self, graph):
        self.stream, self.capturing = "capture", self.capturing + 1  # torch leaves the stream so if capturing fails
        try:
            yield
            if not self.captures:
                raise RuntimeError("operation not permitted when stream is capturing\nmore")
        finally:
            self.capturing -= 1
        self.stream = "main"


class _FakeEvent:
    def record(self):
        self.at = time.perf_counter()

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return (end.at - self.at) * 1e3


class _FakeGraph:
    def replay(self):
        time.sleep(1e-6)
