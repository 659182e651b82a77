"""What `pip install fastconv[bench]` brings, imported where it is needed: a missing piece is named with its cure."""

import importlib


class MissingExtra(Exception):
    """A package that this command needs is not installed; the text says how to get it."""


def need(module, purpose):
    """The module; `purpose` completes 'is not installed, needed ...'."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if error.name and error.name.partition(".")[0] != module.partition(".")[0]:
            raise  # it is there, but broken
        package = module.partition(".")[0]
        raise MissingExtra(
            f"{package} is not installed, needed {purpose}: pip install 'fastconv[bench]' or pip install {package}"
        ) from None
