"""Each atom against its host model, and its layout against the formulas of the PTX ISA, written here a second time.

What neither can tell is whether hardware agrees: `make atoms-check` runs the same checks (tests/cuda/atoms.cu) there.
"""

import pytest
import simt

# PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type", "... mma.m16n8k8" (.tf32), "... mma.m8n8k4 with
# .f64": the row and column of element i of a lane, as printed there.


def a16(lane, i):
    row = lane >> 2 if 0 <= i < 2 or 4 <= i < 6 else (lane >> 2) + 8
    return row, (lane % 4) * 2 + (i & 1) + (8 if i >= 4 else 0)


def b16(lane, i):
    return (lane % 4) * 2 + (i & 1) + (8 if i >= 2 else 0), lane >> 2


def c16(lane, i):
    return (lane >> 2 if i < 2 else (lane >> 2) + 8), (lane % 4) * 2 + (i & 1)


def a_tf32(lane, i):
    return (lane >> 2 if i in (0, 2) else (lane >> 2) + 8), (lane % 4 if i in (0, 1) else lane % 4 + 4)


def b_tf32(lane, i):
    return (lane % 4 if i == 0 else lane % 4 + 4), lane >> 2


LAYOUTS = {
    ("mma.m16n8k16", "a"): (a16, 8, 16, 16),
    ("mma.m16n8k16", "b"): (b16, 4, 16, 8),
    ("mma.m16n8k16", "c"): (c16, 4, 16, 8),
    ("mma.m16n8k8.tf32", "a"): (a_tf32, 4, 16, 8),
    ("mma.m16n8k8.tf32", "b"): (b_tf32, 2, 8, 8),
    ("mma.m16n8k8.tf32", "c"): (c16, 4, 16, 8),
    ("mma.m8n8k4.f64", "a"): (lambda lane, i: (lane >> 2, lane % 4), 1, 8, 4),
    ("mma.m8n8k4.f64", "b"): (lambda lane, i: (lane % 4, lane >> 2), 1, 4, 8),
    ("mma.m8n8k4.f64", "c"): (lambda lane, i: (lane >> 2, (lane % 4) * 2 + i), 2, 8, 8),
}


@pytest.mark.parametrize("atom, fragment", LAYOUTS)
def test_layouts_are_those_of_the_ptx_isa(atom, fragment):
    formula, count, rows, columns = LAYOUTS[atom, fragment]
    found = simt.layout(atom, fragment)
    assert found == [[formula(lane, i) for i in range(count)] for lane in range(32)]
    places = [place for lane in found for place in lane]
    assert sorted(places) == [(r, c) for r in range(rows) for c in range(columns)]  # each element once


@pytest.mark.parametrize("eager", [False, True])
def test_every_atom_does_what_its_model_says(eager):
    report = simt.atoms(eager)
    assert len(report) == 14
    assert {name: said for name, said in report.items() if said != "ok"} == {}


def swizzle(offset, row_bytes):
    return offset ^ (offset >> 3 & (row_bytes - 16))


@pytest.mark.parametrize("row_bytes", [32, 64, 128])
def test_swizzled_columns_of_chunks_lie_in_different_banks(row_bytes):
    """What ldmatrix reads at once, 8 rows of one 16-byte chunk, covers all 32 banks, and no two chunks change places."""
    chunks = range(0, 8 * row_bytes, 16)
    assert sorted(swizzle(c, row_bytes) for c in chunks) == list(chunks)
    for chunk in range(row_bytes // 16):
        banks = [swizzle(row * row_bytes + chunk * 16, row_bytes) // 16 % 8 for row in range(8)]
        assert sorted(banks) == list(range(8))
