"""What the numbers were measured on: versions, CPU, the rates that this machine reaches, and whether it was quiet."""

import os
import pathlib
import platform
import resource
import subprocess
import sys
import time

import torch

from .measure import spread, summary

_BUSY_SPREAD = 0.05  # half the quartile distance of a fixed task; a quiet machine shows 0.01
_BUSY_DRIFT = 0.15


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
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.release()}",
        "git": git_commit(),
    }


def _timed(call, times):
    call()
    samples = []
    for _ in range(times):
        begin = time.perf_counter()
        call()
        samples.append(time.perf_counter() - begin)
    return samples


def peaks():
    """The rates that this machine reaches with the present number of threads; both are the best of several.

    flops_per_second: torch's matrix product of 1536 x 1536 float32, which other code may well exceed by a little.
    bytes_per_second: copying 64 MiB, read and written bytes both counted.
    """
    size, copied = 1536, 64 << 20
    a, b = torch.randn(size, size), torch.randn(size, size)
    out = torch.empty(size, size)
    multiply = _timed(lambda: torch.mm(a, b, out=out), 9)
    source, target = torch.ones(copied // 4), torch.empty(copied // 4)
    copy = _timed(lambda: target.copy_(source), 9)
    return {
        "flops_per_second": 2 * size**3 / min(multiply),
        "bytes_per_second": 2 * copied / min(copy),
        "matmul": summary(multiply),
        "copy": summary(copy),
        "spread": spread(multiply),
        "load": os.getloadavg()[0],
    }


def noise(before, after=None):
    """A list of reasons not to trust the timings; empty on a quiet machine."""
    reasons = []
    for when, measured in (("at the start", before), ("at the end", after)):
        if measured and measured["spread"] > _BUSY_SPREAD:
            reasons.append(f"one and the same matrix product took times {measured['spread']:.0%} apart {when}")
    if before["load"] > 0.5 * os.cpu_count():
        reasons.append(f"other work was running at the start (load average {before['load']:.1f})")
    if after:
        drift = after["matmul"]["median"] / before["matmul"]["median"] - 1
        if abs(drift) > _BUSY_DRIFT:
            reasons.append(f"the machine was {abs(drift):.0%} {'slower' if drift > 0 else 'faster'} at the end")
    return reasons


def peak_rss():
    """The most memory that this process ever held, in bytes."""
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held if sys.platform == "darwin" else held * 1024
