import pathlib
import sys

import pytest
import torch

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # tests import kernels.py beside them


def pytest_addoption(parser):
    parser.addoption("--require-gpu", action="store_true", help="tests that need a GPU fail without one, not skip")


@pytest.fixture
def one_thread():
    """Small problems only wait for other threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
