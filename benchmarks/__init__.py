"""Networks from the literature run through fastconv and PyTorch side by side: `python -m benchmarks --help`."""
