import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # tests import kernels.py beside them


def pytest_addoption(parser):
    parser.addoption("--require-gpu", action="store_true", help="tests that need a GPU fail without one, not skip")
