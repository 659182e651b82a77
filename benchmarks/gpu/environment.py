"""`python -m benchmarks.gpu.environment`: what GPU and versions there are, as one line of JSON, the last one printed.

gpu-check asks a process of its own, so that it holds no part of the GPU itself while its steps run.
"""

import importlib.metadata
import json
import os
import subprocess
import sys

from build_tools import facts as build_facts

from . import machine
from .device import open_device

_PACKAGES = ("torch", "numpy", "pytest", "hypothesis", "ninja", "pybind11", "setuptools", "triton")


def _said(*words):
    """What a command prints; None without it."""
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=30).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def main():
    """Returns the exit status: 1 without a GPU that torch can use."""
    smi = _said("nvidia-smi")
    print(smi or "no nvidia-smi")
    try:
        device = open_device("cuda")
    except RuntimeError as missing:
        print(f"error: {missing}")
        return 1
    found = machine.facts(device)
    found["packages"] = {name: _version(name) for name in _PACKAGES}
    found["executable"] = sys.executable
    found["nvcc"], found["nvcc_version"] = build_facts.find_nvcc()
    found["compiler"] = (_said(os.environ.get("CXX", "c++"), "--version") or "none").splitlines()[0]
    found["cores"] = os.cpu_count()
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
