"""What the numbers were measured on: GPU, driver, versions, and the clocks while it ran."""

import platform
import statistics
import subprocess
import time

import torch

from .. import machine as host

_ONCE = ("name", "driver_version", "clocks.max.sm", "clocks.max.mem", "power.limit", "pstate", "memory.total")
_DURING = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu", "utilization.gpu")
_INTERVAL = 5.0  # seconds


def _which_gpu(properties):
    """The words that make nvidia-smi speak of torch's device, whatever CUDA_VISIBLE_DEVICES says."""
    uuid = getattr(properties, "uuid", None)
    return ["-i", str(uuid) if str(uuid).startswith("GPU-") else f"GPU-{uuid}"] if uuid else ["-i", "0"]


def _number(word):
    try:
        return float(word)
    except ValueError:
        return word.strip()  # "[N/A]"


def _parse(line, fields):
    return dict(zip(fields, (_number(word) for word in line.split(", ")), strict=False))


def nvidia_smi(properties):
    """What nvidia-smi says once, a dict of its own field names; None without it."""
    words = ["nvidia-smi", f"--query-gpu={','.join(_ONCE)}", "--format=csv,noheader,nounits", *_which_gpu(properties)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return _parse(done.stdout.strip(), _ONCE)


class Clocks:
    """Clocks, power and temperature while the run goes on, from nvidia-smi called in the background; nothing without
    it. Each call takes it some 0.1 s, in which the GPU works on."""

    def __init__(self, device, interval=_INTERVAL):
        self.samples = []  # [{"at": seconds since the start, field: value, ...}, ...]
        self._began = time.perf_counter()
        self._process, self._interval = None, interval
        self._next = time.perf_counter() if device.kind == "cuda" else float("inf")
        self._words = ["nvidia-smi", f"--query-gpu={','.join(_DURING)}", "--format=csv,noheader,nounits"]
        self._words += _which_gpu(device.properties)

    def poll(self):
        """Take what the last call said, start another one if it is time. Never waits."""
        if self._process is not None and self._process.poll() is not None:
            self._take()
        now = time.perf_counter()
        if self._process is None and now >= self._next:
            self._next = now + self._interval
            try:
                self._process = subprocess.Popen(
                    self._words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
                )
            except OSError:
                self._next = float("inf")  # there is none

    def stop(self):
        """Wait for a call that runs."""
        if self._process is not None:
            try:
                self._process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self._process.kill()
            self._take()

    def _take(self):
        output = self._process.communicate()[0].strip()
        if output.count(",") == len(_DURING) - 1:
            self.samples.append({"at": time.perf_counter() - self._began, **_parse(output, _DURING)})
        self._process = None


def clock_summary(samples):
    """{field: {"least", "median", "most"}} of the samples in which the GPU was busy; {} if there are none."""
    busy = [s for s in samples if isinstance(s.get("utilization.gpu"), float) and s["utilization.gpu"] > 0]
    found = {}
    for field in _DURING:
        values = [s[field] for s in busy if isinstance(s.get(field), float)]
        if values:
            found[field] = {"least": min(values), "median": statistics.median(values), "most": max(values)}
    return found


def facts(device):
    """Versions, device and host; values that a machine does not tell are None."""
    known = {
        "device": device.name,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None,
        "cpu": host.cpu_model(),
        "system": f"{platform.system()} {platform.release()}",
        "git": host.git_commit(),
        "cache_bytes": device.cache_bytes,
    }
    if device.kind == "cuda":
        properties = device.properties
        known["capability"] = f"{properties.major}.{properties.minor}"
        known["multiprocessors"] = properties.multi_processor_count
        known["memory_bytes"] = properties.total_memory
        known["nvidia_smi"] = nvidia_smi(properties)
        if known["nvidia_smi"] is None:
            known["sm_clock_mhz"] = _torch_clock()
    return known


def _torch_clock():
    try:
        return torch.cuda.clock_rate()
    except Exception:  # without pynvml, an optional package, each torch raises an error of its own
        return None
