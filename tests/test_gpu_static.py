"""Static gates on the CUDA kernels, by nvcc without a GPU: no warning, no spill, resources as recorded."""

import pytest

from build_tools import kernel_resources as resources
from build_tools.switches import SwitchError


@pytest.fixture(scope="module")
def measured():
    try:
        resources.nvcc()
    except SwitchError as reason:
        pytest.skip(f"no CUDA toolkit on this machine: {reason}")
    return resources.measure()


def test_every_kernel_compiles_without_warning_spill_or_stack(measured):
    assert {row["arch"] for row in measured} == set(resources.ARCHS)
    assert [row for row in measured if row["spill_bytes"] or row["stack_bytes"]] == []


def test_limits_of_an_architecture(measured):
    """At most 250 kernels each; none beyond 255 registers, or 48 KiB of static shared memory."""
    for arch in resources.ARCHS:
        kernels = [row for row in measured if row["arch"] == arch]
        assert 0 < len(kernels) <= 250
        assert max(row["registers"] for row in kernels) <= 255
        assert max(row["shared_bytes"] for row in kernels) <= 48 << 10


def test_resources_are_as_recorded(measured):
    """A change is a visible diff: `python -m build_tools.kernel_resources --write` records it.

    Another version of nvcc allocates registers its own way: then the kernels are the recorded ones, and their shared
    memory, which the source decides.
    """
    version, recorded = resources.read()
    now = measured
    if version != resources.nvcc()[1]:
        recorded, now = ([dict(row, registers=0) for row in rows] for rows in (recorded, measured))
    assert resources.differences(recorded, now) == []


def test_ptxas_is_read_right():
    said = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN8fastconv4cuda4kernI6__halfLi3EEEvPKT_i' for 'sm_80'
ptxas info    : Function properties for _ZN8fastconv4cuda4kernI6__halfLi3EEEvPKT_i
    16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 90 registers, used 1 barriers, 2048 bytes smem, 372 bytes cmem[0]
"""
    assert resources.parse(said) == [
        dict(arch="sm_80", kernel="kern<half, 3>", registers=90, shared_bytes=2048, stack_bytes=16, spill_bytes=12)
    ]


def test_a_change_shows():
    row = dict(arch="sm_80", kernel="k", registers=32, shared_bytes=0, stack_bytes=0, spill_bytes=0)
    assert resources.differences([row], [dict(row, registers=40)]) == ["sm_80 k: registers 32 -> 40"]
    assert resources.differences([row], []) == ["sm_80 k: gone"]
    assert resources.differences([], [row]) == ["sm_80 k: new, 32 registers"]
