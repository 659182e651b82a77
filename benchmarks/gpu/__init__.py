"""What PyTorch's own kernels reach on an NVIDIA GPU, without fastconv: `python -m benchmarks.gpu.baseline --help`."""
