"""What the numbers were measured on: versions, CPU, the rates that this machine reaches, and whether it was quiet."""

import os
import pathlib
import platform
import resource
import subprocess
import sys
import time

import torch

from .measure import summary

# What a fixed task may vary by before the machine counts as busy: a quiet one shows 2 % within a second and 5 % over
# minutes.
_BUSY_VARIATION = 0.10
_BUSY_DRIFT = 0.15
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
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.release()}",
        "git": git_commit(),
    }


def _timed(call, seconds=0.7):
    call()
    samples, end = [], time.perf_counter() + seconds
    while len(samples) < 9 or time.perf_counter() < end:
        begin = time.perf_counter()
        call()
        samples.append(time.perf_counter() - begin)
    return samples


def peaks():
    """The rates that this machine reaches with the present number of threads; both are the best of several.

    flops_per_second: torch's matrix product of 1024 x 1024 float32, which other code may well exceed by a little.
    bytes_per_second: copying 64 MiB, read and written bytes both counted.
    """
    size, copied = 1024, 64 << 20
    a, b = torch.randn(size, size), torch.randn(size, size)
    out = torch.empty(size, size)
    multiply = _timed(lambda: torch.mm(a, b, out=out))
    source, target = torch.ones(copied // 4), torch.empty(copied // 4)
    copy = _timed(lambda: target.copy_(source))
    return {
        "flops_per_second": 2 * size**3 / min(multiply),
        "bytes_per_second": 2 * copied / min(copy),
        "matmul": summary(multiply),
        "copy": summary(copy),
        "load": os.getloadavg()[0],
    }


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
