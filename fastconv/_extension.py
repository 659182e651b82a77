"""Finds, checks and loads the compiled module fastconv._C.

Nothing is loaded on import. `load` compares what _build_info.json says with the running torch and Python before the
library is opened: an extension built for another torch would crash or fail with an undefined symbol instead.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import json
import sys
from pathlib import Path

from ._version import __version__

PACKAGE = Path(__file__).resolve().parent
INFO_NAME = "_build_info.json"

_module = None


class ExtensionError(ImportError):
    """The compiled part of fastconv is missing, unloadable or built for another torch; the message names the cure."""


def rebuild_command(package: Path = PACKAGE) -> str:
    """What to type to build the extension anew for the running interpreter."""
    root = package.parent
    if (root / "setup.py").is_file():
        return f"cd {root} && {sys.executable} setup.py build_ext --inplace"
    return f"{sys.executable} -m pip install --no-build-isolation --no-deps --force-reinstall ., in a clone of fastconv"


def build_info(package: Path = PACKAGE) -> dict | None:
    """What the build recorded about itself, None if there is no record. Raises ExtensionError if it is damaged."""
    try:
        text = (package / INFO_NAME).read_text()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ExtensionError(f"fastconv: {package / INFO_NAME} cannot be read: {error}") from error
    try:
        info = json.loads(text)
        needed = ("fastconv", "torch", "python", "extension")
        if not isinstance(info, dict) or not all(isinstance(info.get(name), str) for name in needed):
            raise ValueError(f"not all of {', '.join(needed)} are there")
    except ValueError as error:
        raise ExtensionError(
            f"fastconv: {package / INFO_NAME} is damaged ({error}); rebuild: {rebuild_command(package)}"
        ) from error
    return info


def find_problem(package: Path, torch_version: str, suffixes: list[str] | None = None) -> str | None:
    """Why the extension in `package` cannot be loaded into the running torch, with the cure; None if nothing is wrong.

    The library itself is not opened. suffixes: the file name endings that this Python loads, most specific first.
    """
    suffixes = suffixes or importlib.machinery.EXTENSION_SUFFIXES
    cure = f"rebuild: {rebuild_command(package)}"
    try:
        info = build_info(package)
    except ExtensionError as error:
        return str(error)
    if not any((package / f"_C{suffix}").is_file() for suffix in suffixes):
        others = sorted(path.name for path in package.glob("_C.*"))
        if others:
            return f"fastconv: the extension was built for another Python ({', '.join(others)}); {cure}"
        return f"fastconv: the extension is not built; build it: {rebuild_command(package)}"
    if info is None:
        return f"fastconv: {INFO_NAME} is missing, so what the extension was built for is unknown; {cure}"
    if info["extension"] not in [f"_C{suffix}" for suffix in suffixes]:
        running = sys.version.split()[0]
        return f"fastconv: the extension was built for Python {info['python']}, this is Python {running}; {cure}"
    if info["fastconv"] != __version__:
        return f"fastconv: the extension was built from fastconv {info['fastconv']}, this is {__version__}; {cure}"
    if info["torch"] != torch_version:
        return f"fastconv: the extension was built for torch {info['torch']}, this is torch {torch_version}; {cure}"
    return None


def load():
    """The compiled module fastconv._C, loaded once.

    Raises ExtensionError, with the cure, if it is missing, was built for another torch or Python, or does not load.
    """
    global _module
    if _module is None:
        import torch  # first: its libraries and its OpenMP runtime are what the extension is linked against

        problem = find_problem(PACKAGE, str(torch.__version__))
        if problem:
            raise ExtensionError(problem)
        try:
            _module = importlib.import_module(__package__ + "._C")
        except ImportError as error:
            raise ExtensionError(
                f"fastconv: the extension does not load: {error}; rebuild: {rebuild_command()}"
            ) from error
    return _module


def status() -> tuple[bool, str]:
    """(whether the extension can be used, in words why or why not). Never raises."""
    try:
        module = load()
    except Exception as error:
        return False, str(error)
    return True, f"loaded from {module.__file__}"
