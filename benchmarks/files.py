"""Results on disk: whole or not at all."""

import os
import pathlib


def replace(path, text):
    """Write `text` under a temporary name beside `path`, then rename: no reader ever sees half a file."""
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
