"""The emulator's checker: every planted bug is found and named, sound kernels give no report (tests/cuda/planted.cu)."""

import re

import pytest
import simt

SOUND = [
    "reverse",
    "neighbours_after_syncwarp",
    "reused_after_barrier",
    "sum_by_shuffles",
    "copied_and_waited_for",
    "producer_and_consumer",
]

# kernel -> what the report must say
BUGS = {
    "read_past_the_end": r"out of bounds: read of 4 bytes, 0 bytes past the end of 'x' \(9216 bytes\)",
    "read_before_the_start": r"out of bounds: read of 4 bytes, \d+ bytes before 'x'",
    "write_past_the_end": r"out of bounds: write of 4 bytes, \d+ bytes past the end of 'y'",
    "shared_past_the_end": r"out of bounds: read of 4 bytes at byte 1024 of the block's 1024 bytes of shared memory",
    "unwritten_shared": r"read of shared memory, byte \d+, which nothing has written",
    "unwritten_global": r"read of 'y', byte \d+, which nothing has written",
    "missing_syncthreads": r"race: (read|write) of shared memory, byte \d+, which thread \(\d+,0,0\) (writes|reads)",
    "missing_second_syncthreads": r"race: (read|write) of shared memory",
    "missing_syncwarp": r"race: (read|write) of shared memory",
    "syncwarp_for_another_warp": r"race: (read|write) of shared memory",
    "shuffle_is_no_fence": r"race: (read|write) of shared memory",
    "divergent_barrier": r"divergent __syncthreads: other threads wait at planted\.cu:\d+",
    "skipped_barrier": r"__syncthreads that \d+ threads of the block never reach|deadlock: .*__syncthreads at planted",
    "divergent_shuffle": r"deadlock: .*in shuffle at planted\.cu:\d+",
    "shuffle_from_a_missing_lane": r"a shuffle reads a lane that takes no part in it",
    "named_barrier_of_one_side": r"deadlock: .*128 threads in named barrier at planted\.cu:\d+",
    "two_blocks_write_one_word": r"race between blocks: write of 'y', byte \d+, which block \d writes",
    "blocks_pass_a_value": r"race between blocks: read of 'y'",
    "threads_race_in_global_memory": r"race: write of 'y', byte \d+, which thread",
    "matrix_row_past_the_end": r"out of bounds: read of 16 bytes at byte 1\d+ of the block's 1024 bytes of shared memory",
    "matrix_rows_without_barrier": r"race: (read|write) of shared memory",
}  # fmt: skip


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", SOUND)
def test_sound_kernels_give_no_report(name, seed):
    assert simt.planted(name, seed=seed) == ""
    assert simt.planted(name, seed=seed, eager=True) == ""


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", BUGS)
def test_each_planted_bug_is_found(name, seed):
    said = simt.planted(name, seed=seed)
    assert re.search(BUGS[name], said), said
    assert f"kernel {name}: " in said and "block (" in said and "thread (" in said
    assert re.search(r"planted\.cu:\d+", said), "the report names no source line"


def test_a_missing_wait_shows_when_copies_are_late():
    """Done at the wait, the copy lands after the read: a race. Done at once, nothing seems wrong."""
    assert re.search(r"race: (read|write) of shared memory", simt.planted("missing_copy_wait"))
    assert simt.planted("missing_copy_wait", eager=True) == ""


def test_an_early_overwrite_shows_when_copies_are_early():
    assert re.search(r"race: (read|write) of shared memory", simt.planted("copy_overwrites_too_early", eager=True))
    assert simt.planted("copy_overwrites_too_early") == ""


def test_the_line_of_the_report_is_the_line_of_the_bug():
    source = (simt.ROOT / "tests/cuda/planted.cu").read_text().splitlines()
    said = simt.planted("read_past_the_end")
    line = int(re.search(r"planted\.cu:(\d+)", said).group(1))
    assert "x[FASTCONV_ME + 1]" in source[line - 1]


def test_sectors_and_bank_conflicts_are_counted():
    """One block of 8 warps. Reads 32 bytes apart: 32 sectors where 4 hold as many bytes. Eight lanes to a bank, 4 banks."""
    with simt.counting() as seen:
        assert simt.planted("strided_accesses", blocks=1) == ""
    read = seen.where(shared=False, write=False)
    assert (read.requests, read.units, read.minimum) == (8, 8 * 32, 8 * 4)
    write = seen.where(shared=False, write=True)
    assert (write.requests, write.units, write.minimum) == (8, 8 * 4, 8 * 4)
    scattered = seen.where(shared=True, write=True)
    assert (scattered.requests, scattered.units, scattered.minimum) == (8, 8 * 8, 8)
    straight = seen.where(shared=True, write=False)
    assert straight.units == straight.minimum == 8


def test_bank_conflicts_of_ldmatrix_are_counted():
    """One block of 8 warps, 4 matrices each: a matrix's 8 rows of 16 bytes in 4 banks take 8 cycles, in all banks one."""
    counted = {}
    for name in ("matrix_rows_in_the_same_banks", "matrix_rows_in_all_banks"):
        with simt.counting() as seen:
            assert simt.planted(name, blocks=1) == ""
        counted[name] = seen.where(shared=True, write=False)
        assert "planted.cu" in next(a.line for a in seen.accesses if a.shared and not a.write)
        assert seen.atoms == {"ldmatrix": 8}
    conflicts, apart = counted.values()
    assert (conflicts.requests, conflicts.lanes, conflicts.units, conflicts.minimum) == (8, 8 * 32, 8 * 4 * 8, 8 * 4)
    assert (apart.requests, apart.lanes, apart.units, apart.minimum) == (8, 8 * 32, 8 * 4, 8 * 4)
