"""The sides of a case: every peer and every row computes the same, checked as a run checks it."""

import importlib.util

import pytest
import torch
from benchmarks import cases, compiled, contestants, jax_lax, machine, onnx_runtime, operands, report, verify
from benchmarks.operands import Operands
from benchmarks.peers import PEERS
from benchmarks.rows import facts_of
from torch.utils.flop_counter import FlopCounterMode

ACTIVATIONS = ("leaky_relu:0.2", "relu6", "elu:0.5", "sigmoid", "tanh", "silu", "gelu", "hardswish")
PROBLEMS = {
    "conv": "conv n3c4h9w7 k6r3s2 st2x1 pd1x0 dl1 g2 {dtype} nchw fwd bias relu",
    "unequal pads": "conv n2c4h9w7 k6r3s3 st1 pd0,1,2,1 dl1 g1 {dtype} nchw fwd bias relu res",
    "plain": "conv n2c3h8w9 k5r3s3 st1 pd1 dl1 g1 {dtype} nchw fwd",
    "depthwise": "conv n2c6h8w9 k6r3s3 st1 pd2 dl2 g6 {dtype} nchw fwd bias",
    "max": "maxpool n2c4h9w7 r3s3 st2 pd1 dl1 {dtype} nchw fwd ceil",
    "avg": "avgpool n2c4h9w7 r3s3 st2 pd1 dl1 {dtype} nchw fwd ceil nopad",
    "whole map": "avgpool n2c4h7w7 r7s7 st1 pd0 dl1 {dtype} nchw fwd",
    "transposed": "conv n2c4h9w8 k6r3s2 st2x3 pd1x0 dl1 g2 {dtype} nchw grad_input bias",
    "adaptive max": "maxpool n2c4h9w7 r1s1 st1 pd0 dl1 {dtype} nchw fwd adaptive p4q5",
    "adaptive avg": "avgpool n2c4h9w7 r1s1 st1 pd0 dl1 {dtype} nchw fwd adaptive p4q5",
    "lp": "lppool n2c4h9w7 r3s2 st2 pd0 dl1 {dtype} nchw fwd ceil norm2",
    "odd norm": "lppool n2c4h9w7 r2s2 st2 pd0 dl1 {dtype} nchw fwd norm3",
    **{f"{word} res" if word == "elu:0.5" else word: f"conv n2c4h9w7 k6r3s3 st1 pd1 dl1 g1 {{dtype}} nchw fwd bias "
       f"{word}{' res' if word == 'elu:0.5' else ''}" for word in ACTIVATIONS},
}  # fmt: skip
PASSES = [(name, direction) for name, text in PROBLEMS.items() for direction in cases.PASSES
          if (text.startswith("conv") or direction != "grad_weight")
          and (name not in ("silu", "gelu", "hardswish") or direction in ("fwd", "train"))]  # fmt: skip


@pytest.fixture(autouse=True)
def strictest():
    with contestants.accuracy("torch"):
        yield


def case_of(name, direction="fwd", dtype="f32"):
    return cases.of_text(PROBLEMS[name].format(dtype=dtype)).replace(direction=direction, layouts=cases.LAYOUTS)


def checked(case):
    """(operands, reference, names, torch's errors by layout)"""
    made = Operands(case)
    reference = [t.detach() for t in made.reference(contestants.torch_results)]
    names = made.result_names()
    assert len(names) == len(reference)
    torchs = {
        layout: verify.errors(contestants.torch_results(case, made.of(layout)), reference) for layout in cases.LAYOUTS
    }
    for found in torchs.values():
        assert verify.torch_complaint(names, found, case.dtype) is None
    return made, reference, names, torchs


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f64"])
@pytest.mark.parametrize("name, direction", PASSES)
def test_fastconv_passes_in_every_pass_dtype_and_layout(name, direction, dtype):
    case = case_of(name, direction, dtype)
    made, reference, names, torchs = checked(case)
    for layout in cases.LAYOUTS:
        with torch.set_grad_enabled(direction == "train"):
            results = contestants.fastconv_row(case, made.of(layout), layout, "auto").results()
        assert verify.complaint(names, verify.errors(results, reference), torchs[layout], dtype=dtype) is None
        assert [c["pass"] for c in contestants.choices(case, layout, "auto")] == case.passes()


@pytest.mark.parametrize("direction", cases.PASSES)
@pytest.mark.parametrize("name", ["depthwise", "conv"])
def test_the_reference_is_pytorchs_result_whatever_way_is_faster(name, direction):
    case = case_of(name, direction).having(stride_h=2, activation="relu", residual=direction in ("fwd", "train"))
    made = Operands(case)
    ours, theirs = (made.reference(run) for run in (contestants.reference_results, contestants.torch_results))
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("direction", ["fwd", "grad_input", "train"])
def test_averages_of_whole_maps_are_means_where_pytorch_is_timed(direction):
    """Its mean of a map is more exact than avg_pool2d, to which fastconv's function of that name is held."""
    case = cases.of_text("avgpool n1c16h56w56 r56s56 st1 pd0 dl1 f32 nchw fwd").replace(direction=direction)
    made, reference, names, torchs = checked(case)
    with torch.set_grad_enabled(direction == "train"):
        results = contestants.torch_eager(case, made.of("nchw"), "nchw", 1).results()
    found = verify.errors(results, reference)
    assert verify.peer_complaint(names, found, torchs["nchw"]) is None
    if direction == "fwd":
        assert found[0] < torchs["nchw"][0] / 2


@pytest.mark.parametrize(
    "name, direction",
    [("conv", "fwd"), ("conv", "grad_weight"), ("max", "grad_input"), ("transposed", "fwd"), ("adaptive max", "fwd"),
     ("transposed", "grad_weight"), ("adaptive avg", "grad_input"), ("lp", "grad_input"), ("gelu", "train")],
)  # fmt: skip
def test_a_wrong_result_of_either_side_is_seen(name, direction):
    made, reference, names, torchs = checked(case_of(name, direction))
    wrong = [t.clone() for t in reference]
    wrong[0].view(-1)[0] += 1e-4 * wrong[0].abs().max()
    assert "exceeds" in verify.complaint(names, verify.errors(wrong, reference), torchs["nchw"])
    assert "exceeds" in verify.peer_complaint(names, verify.errors(wrong, reference), torchs["nchw"])


def test_the_reference_of_a_batch_is_that_of_its_images_put_together(monkeypatch):
    case = case_of("conv", "train")
    whole = Operands(case).reference(contestants.torch_results)
    calls = []
    monkeypatch.setattr(operands, "_COLUMN_BYTES", 1)

    def one_image(case, tensors):
        calls.append(len(tensors.x))
        return contestants.torch_results(case, tensors)

    parts = Operands(case).reference(one_image)
    assert calls == [1, 1, 1]
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


NOT_IN_ONNX = {
    "adaptive max": "no adaptive pooling", "adaptive avg": "no adaptive pooling", "lp": "scale windows",
    "odd norm": "absolute values", "relu6": "no relu6", "silu": "no silu", "gelu": "no gelu",
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in PROBLEMS if name not in NOT_IN_ONNX])
def test_onnxruntime_computes_the_same_or_is_named_as_absent(name):
    if importlib.util.find_spec("onnxruntime") is None or importlib.util.find_spec("onnx") is None:
        assert "not installed: pip install 'fastconv[bench]'" in PEERS["onnxruntime"].absent()
        return
    case = case_of(name)
    made, reference, names, torchs = checked(case)
    one = onnx_runtime.contestant(case, made.of("nchw"), "nchw", 1)
    for _ in range(2):
        found = verify.errors(one.results(), reference)
        assert verify.peer_complaint(names, found, torchs["nchw"]) is None


@pytest.mark.parametrize("name", ["conv", "unequal pads", "max", "whole map"])
def test_jax_computes_the_same_or_is_named_as_absent(name):
    if importlib.util.find_spec("jax") is None:
        assert PEERS["jax"].absent() == "not installed: pip install jax"
        return
    case = case_of(name)
    made, reference, names, torchs = checked(case)
    threads = jax_lax.usable_cores()
    for layout in cases.LAYOUTS:
        found = verify.errors(jax_lax.contestant(case, made.of(layout), layout, threads).results(), reference)
        assert verify.peer_complaint(names, found, torchs[layout]) is None


@pytest.mark.parametrize("name, direction", [("conv", "grad_weight"), ("transposed", "fwd"), ("lp", "fwd")])
def test_torch_compile_computes_the_same(name, direction):
    assert PEERS["torch.compile"].absent() is None  # the extension was built here, so there is a compiler
    case = case_of(name, direction)
    made, reference, names, torchs = checked(case)
    with torch.no_grad():
        found = verify.errors(compiled.contestant(case, made.of("nchw"), "nchw", 1).results(), reference)
    assert verify.peer_complaint(names, found, torchs["nchw"]) is None


@pytest.mark.parametrize(
    "peer, case, layout, reason",
    [
        (onnx_runtime, case_of("conv", "train"), "nchw", "forward passes only"),
        (onnx_runtime, case_of("conv"), "nhwc", "NCHW only"),
        (onnx_runtime, case_of("conv", dtype="bf16"), "nchw", "no bfloat16"),
        (jax_lax, case_of("conv", "grad_input"), "nchw", "forward passes only"),
        *((onnx_runtime, case_of(name), "nchw", reason) for name, reason in NOT_IN_ONNX.items()),
        (jax_lax, case_of("transposed"), "nchw", "conv, max, avg, linear only"),
        (jax_lax, case_of("adaptive avg"), "nchw", "windows of one size"),
        (jax_lax, case_of("tanh"), "nchw", "with ReLU or no activation"),
        (compiled, case_of("lp", "grad_input"), "nchw", "measured in 'train'"),
    ],
)
def test_peers_refuse_what_they_cannot_run_in_words(peer, case, layout, reason):
    with pytest.raises(contestants.Refused, match=reason):
        if peer is onnx_runtime and importlib.util.find_spec("onnxruntime") is None:
            raise contestants.Refused(reason)  # named as absent before it is asked
        threads = jax_lax.usable_cores() if peer is jax_lax else 1
        peer.contestant(case, Operands(case).of(layout), layout, threads)


@pytest.mark.parametrize("name", ["plain", "transposed"])
@pytest.mark.parametrize("direction", ["fwd", "grad_input", "grad_weight", "train"])
def test_both_sides_are_credited_with_the_same_flops(direction, name):
    case = case_of(name, direction).having(groups=1)  # torch counts a transposed one's weight gradient as if of one
    expected = facts_of(case, contestants.ops.extension())["flops"]
    tensors = Operands(case).of("nchw")
    calls = (contestants.torch_call(case, tensors), contestants.fastconv_call(case, tensors, "auto"))
    for call in calls:
        with torch.set_grad_enabled(direction == "train"), FlopCounterMode(display=False) as counter:
            call()
        assert counter.get_total_flops() == expected


def test_problems_larger_than_memory_are_not_tried():
    case = case_of("plain").having(n=10**6, h=500, w=500)
    with pytest.raises(operands.TooLarge, match="needs about .* GB of memory, 1.0 GB are free"):
        Operands(case, free=10**9)


def test_peak_memory_counts_what_a_call_holds_at_once():
    size = 64 << 20
    extra = machine.peak_extra_bytes(lambda: torch.ones(size // 4))
    if extra is None:
        assert not machine.pathlib.Path("/proc/self/clear_refs").exists()  # not Linux
        return
    assert 0.97 * size < extra < 1.2 * size  # the kernel counts resident pages a little late
    twice = machine.peak_extra_bytes(lambda: torch.ones(size // 4).add_(torch.ones(size // 4)))
    assert 1.97 * size < twice < 2.2 * size


def test_math_is_held_to_ieee():
    kept = torch.backends.mkldnn.conv.fp32_precision
    torch.backends.mkldnn.conv.fp32_precision = "bf16"
    try:
        machine.ieee()
        assert torch.backends.mkldnn.conv.fp32_precision == "ieee"
    finally:
        torch.backends.mkldnn.conv.fp32_precision = kept


def test_a_refusal_gives_the_forced_rows_own_reason():
    case = case_of("conv")
    with pytest.raises(RuntimeError) as raised:
        contestants.choices(case, "nchw", "depthwise")
    assert contestants.is_refusal(raised.value)
    reason = report._own_reason(str(raised.value), "depthwise")
    assert reason.startswith("depthwise: takes one input channel per group only")
    assert "im2col" not in reason
