"""Results on disk: whole or not at all."""

import math
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


def finite(value):
    """JSON has no infinities or NaN: they become null. Layout names and such stay as they are."""
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
