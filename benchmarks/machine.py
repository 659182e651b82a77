"""What the numbers were measured on: versions, CPU, the rates that this machine reaches, and whether it was quiet."""

import contextlib
import ctypes
import os
import pathlib
import platform
import resource
import subprocess
import sys
import time

import torch

from .extras import need
from .measure import summary
from .operands import DTYPES

# What a fixed task may vary by before the machine counts as busy: a quiet one shows 2 % within a second and 5 % over
# minutes.
_BUSY_VARIATION = 0.10
_BUSY_DRIFT = 0.15
PEAK_SECONDS = 0.7  # for each of the peaks
_BUSY_SPREAD = 0.10  # of a row: half the quartile distance


def cpu_model():
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def git_commit():
    """{"commit", "modified"} of the checkout that this file is in; None outside of one."""

    def git(*words):
        done = subprocess.run(
            ["git", *words], cwd=pathlib.Path(__file__).parent, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "modified": bool(git("status", "--porcelain", "--", ".."))}
    except (OSError, subprocess.CalledProcessError):
        return None


def facts(fastconv, extension):
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fastconv": fastconv.__version__,
        "build": extension.build_info(),
        "isa": extension.cpu_isa(),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "clock_mhz": clock_mhz(),
        "memory_bytes": need("psutil", "to see the memory").virtual_memory().total,
        "malloc": malloc(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "math": MATH,
        "system": f"{platform.system()} {platform.release()}",
        "git": git_commit(),
    }


# Memory that is freed stays with the process: large results cost no page faults, which take longer than small layers.
TUNED_MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "8589934592"}


def malloc():
    """How glibc's malloc was set when this process began: "default", "tuned" (TUNED_MALLOC), or its own words."""
    given = {key: value for key, value in os.environ.items() if key.startswith("MALLOC_") and key.endswith("_")}
    if not given:
        return "default"
    return "tuned" if given == TUNED_MALLOC else " ".join(f"{key}={value}" for key, value in sorted(given.items()))


# What every side computes in: fp32 is compared with fp32, and nothing rounds to tf32 or bf16 on the way.
MATH = {"f32": "ieee", "f64": "ieee", "f16": "fp32 sums", "bf16": "fp32 sums"}


def ieee():
    """Hold torch to MATH, whatever was set before: oneDNN may otherwise compute float32 in bf16."""
    torch.set_float32_matmul_precision("highest")
    for part in (torch.backends.mkldnn.conv, torch.backends.mkldnn.matmul):
        part.fp32_precision = "ieee"


def clock_mhz():
    """The cores' present clock, the mean; None where the system does not tell."""
    clock = need("psutil", "to read the clock").cpu_freq()
    return round(clock.current) if clock and clock.current else None


def free_memory():
    """Bytes that new tensors may take without swapping."""
    return need("psutil", "to see how much memory is free").virtual_memory().available


def peak_extra_bytes(call):
    """The most resident memory that a call took beyond what was held before it: its results and scratch memory,
    in pages of 4 KiB. None where the system does not tell (only Linux does)."""
    try:
        with contextlib.suppress(AttributeError):  # a libc without malloc_trim keeps less
            ctypes.CDLL(None).malloc_trim(0)
        before = _status("VmRSS")
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    except OSError:
        return None
    results = call()
    peak = _status("VmHWM")
    del results
    return max(0, peak - before)


def _status(key):
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {key} in /proc/self/status")


def _timed(call):
    call()
    samples, end = [], time.perf_counter() + PEAK_SECONDS
    while len(samples) < 9 or time.perf_counter() < end:
        begin = time.perf_counter()
        call()
        samples.append(time.perf_counter() - begin)
    return samples


def peaks(dtypes=("f32",)):
    """The rates that this machine reaches with the present number of threads; all are the best of several.

    flops_per_second {dtype: rate}: torch's matrix product (1024 x 1024; float16 and bfloat16, slow on CPUs without
        such instructions, 512 x 512), which other code may well exceed by a little.
    bytes_per_second: copying 64 MiB, read and written bytes both counted.
    matmul, copy: the times of the first dtype's product and of the copy.
    """
    copied = 64 << 20
    products = {dtype: _product(dtype) for dtype in dtypes}
    source, target = torch.ones(copied // 4), torch.empty(copied // 4)
    copy = _timed(lambda: target.copy_(source))
    return {
        "flops_per_second": {dtype: flops / min(samples) for dtype, (flops, samples) in products.items()},
        "bytes_per_second": 2 * copied / min(copy),
        "matmul": summary(products[dtypes[0]][1]),
        "copy": summary(copy),
        "load": os.getloadavg()[0],
        "clock_mhz": clock_mhz(),
    }


def _product(dtype):
    size = 1024 if dtype in ("f32", "f64") else 512
    a, b = (torch.randn(size, size).to(DTYPES[dtype]) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * size**3, _timed(lambda: torch.mm(a, b, out=out))


def noise(before, after=None, spreads=()):
    """Reasons not to trust the times; empty on a quiet machine. `before`, `after`: of peaks(); `spreads`: the rows'."""
    reasons = []
    if before["load"] > 0.5 * os.cpu_count():
        reasons.append(f"other work was running at the start (load average {before['load']:.1f})")
    for when, measured in (("start", before), ("end", after)):
        if measured and (variation := measured["matmul"]["q3"] / measured["matmul"]["best"] - 1) > _BUSY_VARIATION:
            reasons.append(f"one and the same matrix product took up to {variation:.0%} longer at the {when}")
    if after:
        drift = after["matmul"]["median"] / before["matmul"]["median"] - 1
        if abs(drift) > _BUSY_DRIFT:
            reasons.append(f"the machine was {abs(drift):.0%} {'slower' if drift > 0 else 'faster'} at the end")
    unsteady = sum(s > _BUSY_SPREAD for s in spreads)
    if unsteady > len(spreads) / 4:
        reasons.append(f"{unsteady} of {len(spreads)} rows vary by more than +-{_BUSY_SPREAD:.0%}")
    return reasons


def peak_rss():
    """The most memory that this process ever held, in bytes."""
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held if sys.platform == "darwin" else held * 1024
