"""What predicts the kernels' speed on memory, counted in the emulator: sectors of global memory, cycles of shared.

Counted are the accesses of the source, warp by warp (csrc/simt/checker/traffic.cpp). The quality of a global access is
the least number of 32-byte sectors that hold its bytes, over the number that it touches; of a shared one the cycles it
would take without bank conflicts, over those it takes. The rule: 0.9 for global, 1 (no conflict) for shared accesses, for
each with 2 % or more of a kernel's traffic of its kind. What falls short is listed, with the least it reaches and why.
"""

from functools import partial

import pool_kernels
import pytest
import simt
from kernels import check_conv

# Planes and channels are multiples of 16 bytes and of tiles, as those of most layers are.
LAYER = "conv n1c32h16w32 k64r3s3 st1 pd1 dl1 g1 f32 {} {}"
DEPTHWISE = "conv n1c64h16w32 k64r3s3 st1 pd1 dl1 g64 f32 {} {}"
PASSES = ("fwd", "grad_input", "grad_weight")
KERNELS = [("direct:tiled", "fwd"), ("direct:tiled", "grad_input"), ("direct:weight", "grad_weight")]
KERNELS += [(row, pass_) for row in ("im2col", "implicit_gemm", "depthwise") for pass_ in PASSES]

SHIFTED = "rows that a tap shifts by one value straddle one more sector, which the next tap finds in the L1 cache"
HALF_SECTORS = "4 channels or filters of a pixel are half a sector; the other half follows in the next chunk, by way of L2"
SCATTERED = "once per launch, over the filter alone: the filter's order in memory is not the kernel's"
PATCH_FILL = "the patch keeps rows of taps interleaved, for reads of 16 bytes; it is written once for all filters"
DEEP_FILL = "values that lie along the depth in memory go to neighbouring rows of shared memory; 5 % of its cycles"

# (kernel, layout, pass): {kind of access: (least, reason)}
EXCEPTIONS = {
    ("direct:tiled", "nchw", "fwd"): {
        "shared write": (0.5, PATCH_FILL),
        "global read": (0.12, SCATTERED + "; the input's patch, padded by one, reaches 0.56: " + SHIFTED),
        "global write": (0.5, "8 pixels of a filter are stored as two vectors, one after the other"),
    },
    ("direct:tiled", "nchw", "grad_input"): {
        "shared write": (0.5, PATCH_FILL),
        "global read": (0.12, SCATTERED + "; the patch as in the forward"),
        "global write": (0.5, "as in the forward"),
    },
    ("direct:tiled", "nhwc", "fwd"): {
        "shared write": (0.55, PATCH_FILL),
        "global read": (0.12, SCATTERED + "; the patch reaches 0.5: " + HALF_SECTORS),
        "global write": (0.5, HALF_SECTORS),
    },
    ("direct:tiled", "nhwc", "grad_input"): {
        "shared write": (0.55, PATCH_FILL),
        "global read": (0.5, HALF_SECTORS),
        "global write": (0.5, HALF_SECTORS),
    },
    ("direct:weight", "nchw", "grad_weight"): {
        "global read": (0.43, SHIFTED + "; tiles are 8 pixels wide"),
        "global write": (0.29, "partial sums, once per split, in the filter's order"),
        "shared write": (0.93, "the last tile of a row is narrower"),
    },
    ("direct:weight", "nhwc", "grad_weight"): {
        "global write": (0.29, "partial sums, once per split, in the filter's order"),
    },
    ("im2col", "nchw", "fwd"): {"global read": (0.87, SHIFTED), "shared write": (0.5, DEEP_FILL)},
    ("im2col", "nchw", "grad_input"): {"global read": (0.77, SHIFTED)},
    ("im2col", "nchw", "grad_weight"): {"global read": (0.87, SHIFTED), "shared write": (0.5, DEEP_FILL)},
    ("im2col", "nhwc", "fwd"): {"shared write": (0.5, DEEP_FILL)},
    ("im2col", "nhwc", "grad_input"): {"shared write": (0.5, DEEP_FILL)},
    ("implicit_gemm", "nchw", "fwd"): {"shared write": (0.5, DEEP_FILL)},
    ("implicit_gemm", "nchw", "grad_input"): {
        "global read": (0.19, "filters are read channel by channel, r * s values apart; other taps use the rest"),
        "shared write": (0.5, DEEP_FILL),
    },
    ("implicit_gemm", "nchw", "grad_weight"): {"global read": (0.8, SHIFTED), "shared write": (0.5, DEEP_FILL)},
    ("implicit_gemm", "nhwc", "fwd"): {"shared write": (0.5, DEEP_FILL)},
    ("implicit_gemm", "nhwc", "grad_input"): {"shared write": (0.5, DEEP_FILL)},
    ("depthwise", "nchw", "fwd"): {"shared read": (0.75, "32 columns and 2 neighbours: 34 words in 32 banks")},
    ("depthwise", "nchw", "grad_input"): {"shared read": (0.75, "as in the forward")},
    ("depthwise", "nchw", "grad_weight"): {
        "global read": (0.79, SHIFTED),
        "global write": (0.12, SCATTERED),
        "shared read": (0.5, "a block's sums, once, by 9 of 32 lanes"),
    },
    ("depthwise", "nhwc", "fwd"): {"shared write": (0.5, "the filter, once per block")},
    ("depthwise", "nhwc", "grad_input"): {"shared write": (0.5, "the filter, once per block")},
    ("depthwise", "nhwc", "grad_weight"): {"global write": (0.12, SCATTERED)},
}  # fmt: skip


def kind(access):
    return ("shared " if access.shared else "global ") + ("write" if access.write else "read")


def counted(kernel, layout, pass_):
    """{kind: [(quality, source lines)]} of the accesses that matter."""
    text = (DEPTHWISE if kernel == "depthwise" else LAYER).format(layout, pass_)
    with simt.counting() as seen:
        check_conv(text, kernel.split(":")[0], run=lambda t, row, *args: partial(simt.run_row, t, kernel)(*args))
    totals = {}
    for a in seen.accesses:
        totals[kind(a)] = totals.get(kind(a), 0) + a.units
    found = {}
    for a in seen.accesses:
        if a.units >= 0.02 * totals[kind(a)]:
            found.setdefault(kind(a), []).append((a.minimum / a.units, a.line))
    return found


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("kernel, pass_", KERNELS)
def test_accesses_are_coalesced_and_free_of_conflicts(kernel, pass_, layout):
    found = counted(kernel, layout, pass_)
    assert {"global read", "global write"} <= found.keys()
    exceptions = EXCEPTIONS.get((kernel, layout, pass_), {})
    for name, accesses in found.items():
        rule = 0.9 if name.startswith("global") else 1.0
        least, reason = exceptions.get(name, (rule, "the rule"))
        short = [(round(quality, 2), line) for quality, line in accesses if quality < least]
        assert not short, f"{name} below {least} ({reason}): {short}"
        if name in exceptions:  # an exception that is no longer needed goes
            assert min(accesses)[0] < rule, f"{name} keeps the rule: {accesses}"


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_the_inner_loops_of_the_products_have_no_conflicts(layout):
    """Reads of shared memory by 16 bytes, which feed the multiply-adds: the rule without exception."""
    for kernel in ("im2col", "implicit_gemm"):
        for pass_ in PASSES:
            reads = counted(kernel, layout, pass_)["shared read"]
            assert all(quality == 1 for quality, _ in reads), reads


POOLS = [
    "avgpool n2c32h14w20 r1s1 st1 pd0 dl1 f32 {} {} adaptive p6q8",
    "maxpool n2c32h14w20 r1s1 st1 pd0 dl1 f32 {} {} off8 adaptive p6q8",
    "lppool n2c32h17w33 r3s3 st2 pd0 dl1 f32 {} {} norm2",
]
NCHW_GRADIENT = 0.8  # windows over an element: grad_output is read by each of its elements, from the L1 cache


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("pass_", ["fwd", "grad_input"])
@pytest.mark.parametrize("pool", POOLS)
def test_adaptive_and_lp_pools_are_coalesced(pool, pass_, layout):
    with simt.counting() as seen:
        pool_kernels.check(pool.format(layout, pass_), run=simt.run_row)
    for name in ("global read", "global write"):
        accesses = [a for a in seen.accesses if kind(a) == name]
        quality = sum(a.minimum for a in accesses) / sum(a.units for a in accesses)
        least = NCHW_GRADIENT if (name, pass_, layout) == ("global read", "grad_input", "nchw") else 0.9
        assert quality >= least, (name, [(a.minimum / a.units, a.line) for a in accesses])
