"""The checked emulator for tests: CUDA rows with every access checked, counts of their memory traffic."""

import ctypes
import re
import shutil
import subprocess
from collections import namedtuple
from functools import lru_cache
from pathlib import Path

import torch

from build_tools import builder

ROOT = Path(__file__).resolve().parent.parent

Access = namedtuple("Access", "line shared write lane_bytes requests lanes distinct_bytes units minimum")


class Refused(Exception):
    """The row does not take the problem; the text says why."""


@lru_cache(maxsize=None)
def library():
    """The checked library, built if it is stale (about a minute from nothing)."""
    path = builder.build_checked(ROOT, say=lambda text: None)
    lib = ctypes.CDLL(str(path))
    lib.path = str(path)
    lib.fastconv_run.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(ctypes.c_void_p), ctypes.c_uint64,
                                 ctypes.c_int, ctypes.c_char_p, ctypes.c_int64]  # fmt: skip
    lib.fastconv_planted.argtypes = [ctypes.c_char_p, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p,
                                     ctypes.c_int64]  # fmt: skip
    lib.fastconv_counted.restype = ctypes.c_char_p
    return lib


def planted(name, blocks=9, seed=0, eager=False):
    """What the checker says of a kernel of tests/cuda/planted.cu; "" if nothing."""
    message = ctypes.create_string_buffer(4096)
    library().fastconv_planted(name.encode(), blocks, seed, eager, message, len(message))
    return message.value.decode()


def run_row(text, row, addresses, threads=1, prepacked=False, seed=0, eager=False):
    """_C.run_row for a CUDA row, checked. Raises AssertionError with the checker's finding, Refused if the row does."""
    of_conv, of_pool = ("x", "weight", "y", "bias", "scale", "aux", "grad_bias"), ("x", "y", "offsets", "input", "output")
    names = of_conv if text.startswith("conv ") else of_pool
    pointers = (ctypes.c_void_p * 7)(*[addresses.get(name) for name in names])
    message = ctypes.create_string_buffer(4096)
    result = library().fastconv_run(text.encode(), row.encode(), pointers, seed, eager, message, len(message))
    if result == 2:
        raise Refused(message.value.decode())
    assert result == 0, f"{text} on {row}: {message.value.decode()}"


def indices(text, offsets):
    """Positions in the plane of dense window offsets, as the CUDA kernel makes them; the text says their layout."""
    found = torch.full_like(offsets, -7, dtype=torch.int64)  # of the offsets' memory format
    run = library().fastconv_indices
    run.restype, run.argtypes = ctypes.c_char_p, [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p]
    said = run(text.encode(), offsets.data_ptr(), found.data_ptr()).decode()
    assert not said, f"{text}: {said}"
    return found


def atoms(eager=False):
    """{atom: "ok" or what differs from its model}, see tests/cuda/atoms.cu."""
    message = ctypes.create_string_buffer(16384)
    library().fastconv_atoms(eager, message, len(message))
    return dict(line.split(": ", 1) for line in message.value.decode().splitlines())


def layout(atom, fragment):
    """[lane][element] -> (row, column) in the matrix that fragment "a", "b" or "c" of an mma holds."""
    at = library().fastconv_layout
    at.argtypes = [ctypes.c_char_p, ctypes.c_char, ctypes.c_int, ctypes.c_int]
    codes = [[at(atom.encode(), fragment.encode(), lane, i) for i in range(8)] for lane in range(32)]
    return [[divmod(code, 256) for code in lane if code >= 0] for lane in codes]


class counting:
    """`with counting() as seen:` ... then seen.accesses, a list of Access, and seen.atoms, a dict of executions."""

    def __enter__(self):
        library().fastconv_count(1)
        return self

    def __exit__(self, *exception):
        library().fastconv_count(0)
        lines = [line.split() for line in library().fastconv_counted().decode().splitlines()]
        self.atoms = {words[2]: int(words[1]) for words in lines if words[0] == "atom"}
        numbers = [list(map(int, words[1:])) for words in lines if words[0] == "access"]
        places = _source_lines([n[0] for n in numbers])
        self.accesses = [Access(place, bool(n[1]), bool(n[2]), *n[3:]) for place, n in zip(places, numbers)]

    def where(self, *, shared, write=None, pattern=""):
        """Counts summed over accesses whose source lines (innermost first) match: an Access, its line the pattern."""
        chosen = [a for a in self.accesses if a.shared == shared and re.search(pattern, a.line)]
        chosen = [a for a in chosen if write is None or a.write == write]
        assert chosen, f"no access matches {pattern!r}: {sorted({a.line for a in self.accesses})}"
        return Access(pattern, shared, write, 0, *(sum(column) for column in zip(*(a[4:] for a in chosen))))


def _source_lines(offsets):
    """'file:line < file:line ...' of each address, the innermost inlined line first."""
    assert shutil.which("addr2line"), "addr2line (binutils) comes with g++"
    command = ["addr2line", "-a", "-i", "-e", library().path, *map(hex, offsets)]
    found = []
    for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
        if line.startswith("0x"):
            found.append([])
        else:
            found[-1].append(line.split(" ")[0].rsplit("/", 1)[-1])
    return [" < ".join(lines) for lines in found]
