"""`make gpu-baseline` on a machine without a GPU: tables, texts, a dry run, and its CUDA lines on a stand-in."""

import json
import math
import pathlib
import subprocess
import sys
import types

import fastconv
import pytest
import torch
from benchmarks import formulas
from benchmarks.gpu import baseline, device, layers, machine, modes, peers, plan, problems, summary
from benchmarks.layers import Conv, MaxPool
from fake_cuda import FakeCuda

_C = fastconv.ops.extension()
CONVS, POOLS = layers.distinct(("conv",)), layers.distinct(("max", "avg"))
DRY = ["--device", "cpu", "--quick", "--networks", "resnet50,alphago"]


@pytest.fixture(autouse=True)
def restored():
    """Threads, math mode and cuDNN's flag as they were: the run sets them for its own process."""
    threads, tuned = torch.get_num_threads(), torch.backends.cudnn.benchmark
    math_modes = torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision
    yield
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = tuned
    torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision = math_modes


def convs(network):
    return [place for place in layers.NETWORKS[network][1] if place.layer.kind == "conv"]


def weights(network):
    return sum(place.layer.parameters(place.shape) for place in convs(network))


def macs(places):
    return sum(place.layer.macs(place.shape) for place in places)


# The layers


def test_layers_are_as_many_as_the_papers_say():
    counts = {name: len(convs(name)) for name in layers.NETWORKS}
    # VGG-16, table 1: 13 convolutions. ResNet-50: 1 + 3 x 16 blocks + 4 shortcuts. AlexNet: 5. GoogLeNet: 3 + 6 x 9.
    # Xception, section 4.1: 36 convolutional layers, 34 of them separable (two each here), + 4 shortcuts. AlphaGo: 13.
    assert counts == {"vgg16": 13, "resnet50": 53, "alexnet": 5, "googlenet": 57, "xception": 74, "alphago": 13}
    pools = {name: len(places) - counts[name] for name, (_, places) in layers.NETWORKS.items()}
    assert pools == {"vgg16": 5, "resnet50": 2, "alexnet": 3, "googlenet": 14, "xception": 5, "alphago": 0}
    assert sum(len(names) for d in CONVS for names in d.uses.values()) == sum(counts.values())


def test_weights_are_the_published_ones():
    # All parameters less those of linear layers, biases and batch norms: VGG-16 138,357,544 and AlexNet 60,965,224 are
    # the published weights', ResNet-50 25,557,032 is torchvision's, Xception 22,855,952 the paper's table 3.
    assert weights("vgg16") == 138_357_544 - (25088 + 1) * 4096 - (4096 + 1) * 4096 - (4096 + 1) * 1000 - 4224
    assert weights("alexnet") == 60_965_224 - (9216 + 1) * 4096 - (4096 + 1) * 4096 - (4096 + 1) * 1000 - 1376
    assert weights("resnet50") == 25_557_032 - (2048 + 1) * 1000 - 2 * sum(p.layer.k for p in convs("resnet50"))
    norms = 2 * sum(place.layer.k for place in convs("xception") if place.layer.groups == 1)
    assert weights("xception") == 22_855_952 - (2048 + 1) * 1000 - norms
    assert weights("alphago") == 192 * 48 * 25 + 11 * 192 * 192 * 9 + 192  # no count is published


def test_flops_are_the_published_ones():
    assert macs(convs("vgg16")) == 15_346_630_656  # 15.5G with the linear layers: He et al., section 3.3, say 15.3
    assert round((macs(convs("resnet50")) + 2048 * 1000) / 1e9, 2) == 4.09  # torchvision's table of models
    # Szegedy et al., table 1, column "ops", millions. Two of its rows are not what their own sizes give and are left
    # out: conv1 (34, where 7x7x3x64 on 112x112 gives 118) and 5a (54; 51).
    published = {"3a": 128, "3b": 304, "4a": 73, "4b": 88, "4c": 100, "4d": 119, "4e": 170, "5b": 71}
    for module, millions in published.items():
        found = macs(place for place in convs("googlenet") if place.layer.name.startswith(f"inception_{module}")) / 1e6
        assert found == pytest.approx(millions, abs=0.7), module
    assert round(macs(place for place in convs("googlenet") if place.layer.name.startswith("conv2")) / 1e6) == 360


def test_sizes_go_through_the_networks_as_published():
    sizes = {name: {p.layer.name: p.layer.output_shape(p.shape) for p in places} for name, (_, places) in
             layers.NETWORKS.items()}  # fmt: skip
    # He et al., table 1: maps of 112, 56, 28, 14, 7
    assert sizes["resnet50"]["conv1"] == (64, 112, 112)
    assert sizes["resnet50"]["pool1"] == (64, 56, 56)
    assert [sizes["resnet50"][f"conv{i}_1.conv3"][1] for i in (2, 3, 4, 5)] == [56, 28, 14, 7]
    assert sizes["googlenet"]["pool2"] == (192, 28, 28)
    assert sizes["googlenet"]["pool4"] == (832, 7, 7)
    assert sizes["xception"]["conv2"] == (64, 147, 147)
    assert sizes["xception"]["block7.sepconv1_pointwise"] == (728, 19, 19)  # Chollet, figure 5: the middle flow
    assert sizes["xception"]["pool"] == (2048, 1, 1)
    for network in ("vgg16", "alexnet", "alphago"):  # chains: every layer takes what the one before gives
        places = layers.NETWORKS[network][1]
        for before, after in zip(places, places[1:], strict=False):
            assert before.layer.output_shape(before.shape) == after.shape


# The problems


@pytest.mark.parametrize("mode", modes.MODES.values(), ids=lambda mode: mode.name)
def test_problem_texts_are_canonical_and_facts_agree(mode):
    for batch in plan.BATCHES if mode.name == "bf16" else (32,):
        for layout in ("nchw", "nhwc"):
            for entry in CONVS:
                for direction in problems.PASSES:
                    for fused in (False, True) if direction == "forward" else (False,):
                        args = entry.layer, entry.shape, batch, mode
                        text = problems.conv_text(*args, layout, direction, fused)
                        assert _C.problem_text(_C.parse_problem(text)) == text
                        facts = _C.problem_facts(text)
                        assert facts["flops"] == entry.layer.flops(entry.shape, batch)
                        assert facts["minimum_bytes"] == problems.conv_bytes(*args, fused)
                        m, n, k = problems.gemm_view(entry.layer, entry.shape, batch)
                        assert facts["flops"] == 2 * m * n * k * entry.layer.groups
            for entry in POOLS:
                for direction in ("forward", "grad_input"):
                    args = entry.layer, entry.shape, batch, mode
                    text = problems.pool_text(*args, layout, direction)
                    assert _C.problem_text(_C.parse_problem(text)) == text
                    assert _C.problem_facts(text)["flops"] == entry.layer.flops(entry.shape, batch)
                    assert _C.problem_facts(text)["minimum_bytes"] == problems.pool_bytes(*args, direction)


def test_texts_of_odd_shapes():
    mode = modes.MODES["tf32"]
    odd = Conv("odd", 6, (3, 5), (2, 1), (1, 2), groups=2)
    text = problems.conv_text(odd, (4, 9, 11), 2, mode, "nhwc", "forward", True)
    assert text == "conv n2c4h9w11 k6r3s5 st2x1 pd1x2 dl1 g2 f32 nhwc fwd bias relu tf32"
    assert _C.problem_text(_C.parse_problem(text)) == text
    assert " nchw " in problems.conv_text(Conv("k1", 1, 1), (1, 9, 9), 2, mode, "nhwc")  # both layouts are the same


def test_the_plan_holds_every_layer_once_and_the_wanted_first():
    every = plan.groups(list(layers.NETWORKS), list(modes.MODES))
    assert len({group.key() for group in every}) == len(every)
    for mode in ("bf16", "tf32", "fp32", "fp16"):
        for batch in plan.BATCHES:
            assert sum(g.kind == "conv" and (g.mode, g.batch) == (mode, batch) for g in every) == len(CONVS)
    assert [group.layer.uses.keys() & {"vgg16", "resnet50"} != set() for group in every[:30]] == [True] * 30
    assert {group.mode for group in every[:30]} == {"bf16"}
    assert any(group.mode == "fp64" for group in every)
    some = plan.groups(["alexnet"], ["fp16"], batches=[1])
    assert {(group.batch, group.mode) for group in some} == {(1, "fp16")}


# Runs


def run(folder, *words):
    """(exit status, JSON) of a dry run."""
    status = baseline.main([*DRY, "--out", str(folder), *words])
    assert sorted(path.name for path in folder.iterdir()) == ["baseline.json", "baseline.md"]
    return status, json.loads((folder / "baseline.json").read_text())


def finite_numbers(value):
    if isinstance(value, dict | list):
        return all(map(finite_numbers, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)


def test_a_dry_run_measures_everything(tmp_path, capsys):
    status, data = run(tmp_path)
    assert status == 0
    assert (data["schema"], data["kind"], data["quick"]) == (summary.SCHEMA, "fastconv gpu baseline", True)
    assert data["stopped_by"] is None
    assert not data["not_reached"] and not data["skipped"]
    assert finite_numbers(data)
    rows = data["rows"]
    variants = {"forward", "forward_bias_relu", "grad_input", "grad_weight"}  # fused is CUDA's alone
    for mode in modes.MODES:
        assert data["checks"][mode]["failed"] == {}
        fused = {f"conv forward_bias_relu_fused {layout}" for layout in ("nchw", "nhwc")}
        assert set(data["checks"][mode]["unsupported"]) == fused
        for layout in ("nchw", "nhwc"):
            found = [r for r in rows if r["kind"] == "conv" and (r["mode"], r["layout"]) == (mode, layout)]
            assert {row["variant"] for row in found} == variants
        assert any(row["kind"] == "gemm" and row["mode"] == mode and row["uses"] for row in rows)
        assert data["peaks"]["gemm_flops_per_second"][mode] > 0
    assert {row["variant"] for row in rows if row["kind"] == "avg"} >= {"forward_mean", "grad_input_mean"}
    assert {row["kind"] for row in rows} == {"conv", "gemm", "copy", "max", "avg"}
    for row in rows:
        assert row["seconds"] > 0 and row["rounds"] == 3 and row["timer"] == "perf_counter"
        assert row["tflops"] == pytest.approx(row["flops"] / row["seconds"] / 1e12, rel=1e-4)
        assert row["gbytes_per_second"] == pytest.approx(row["minimum_bytes"] / row["seconds"] / 1e9, rel=1e-4)
        if row["kind"] in ("conv", "max", "avg"):
            facts = _C.problem_facts(row["problem"])
            assert (facts["flops"], facts["minimum_bytes"]) == (row["flops"], row["minimum_bytes"])
    copied = max(row["minimum_bytes"] / row["seconds"] for row in rows if row["kind"] == "copy")
    assert data["peaks"]["copy_bytes_per_second"] == pytest.approx(copied, rel=1e-4)
    text = (tmp_path / "baseline.md").read_text()
    printed = capsys.readouterr().out
    for words in ("resnet50", "alphago", "grad_weight", "global mean", "these numbers are no benchmark"):
        assert words in text and words in printed


def test_an_interrupt_keeps_the_rows(tmp_path, monkeypatch):
    samples = []
    original = device._Wall.sample

    def sample(self):
        samples.append(self)
        if len(samples) == 100:  # 21 are the machine's; a convolution's group takes 9 contestants, 3 rounds each
            raise KeyboardInterrupt
        return original(self)

    monkeypatch.setattr(device._Wall, "sample", sample)
    status, data = run(tmp_path, "--modes", "fp32")
    assert status == 130
    assert data["stopped_by"] == "an interrupt"
    assert data["not_reached"]
    assert sum(row["rounds"] for row in data["rows"]) == 99  # every sample that was taken belongs to a row
    assert len({row["layer"] for row in data["rows"] if row["kind"] == "conv"}) == 3


def test_the_budget_ends_a_run_and_says_what_is_missing(tmp_path, monkeypatch):
    measure = baseline.Baseline._measure

    def slow(self, group):
        measure(self, group)
        if len(self._group_seconds) == 2:
            self.began -= 1000

    monkeypatch.setattr(baseline.Baseline, "_measure", slow)
    status, data = run(tmp_path, "--modes", "fp32", "--budget", "500")
    assert status == 0
    assert data["stopped_by"] == "the budget of 500 s"
    assert {row["layer"] for row in data["rows"] if row["kind"] == "conv"} != set()
    assert sum(len(part["layers"]) for part in data["not_reached"]) > 0
    assert "not reached: batch 2 fp32" in (tmp_path / "baseline.md").read_text()


def test_groups_that_would_not_fit_are_left_out_for_smaller_ones(tmp_path, monkeypatch):
    heavy = lambda self, group: 1e9 if group.kind == "conv" else 0.0  # noqa: E731
    monkeypatch.setattr(baseline.Baseline, "_predicted", heavy)
    _, data = run(tmp_path, "--modes", "fp32")
    assert {row["kind"] for row in data["rows"] if row["uses"]} == {"max", "avg"}
    assert data["not_reached"] and data["stopped_by"]


def test_a_variant_that_computes_wrongly_is_not_timed(tmp_path, monkeypatch):
    honest = peers.conv_calls

    def planted(layer):
        calls = honest(layer)
        right = calls["grad_weight"]
        return {**calls, "grad_weight": lambda *operands: 1.001 * right(*operands)}

    monkeypatch.setattr(peers, "conv_calls", planted)
    status, data = run(tmp_path, "--modes", "fp32,bf16")
    assert status == 1
    assert set(data["checks"]["fp32"]["failed"]) == {"conv grad_weight nchw", "conv grad_weight nhwc"}
    timed = {(row["mode"], row["variant"]) for row in data["rows"] if row["kind"] == "conv"}
    assert ("fp32", "grad_weight") not in timed
    assert {("fp32", "grad_input"), ("bf16", "grad_weight")} <= timed  # 1e-3 is within bf16's roundings
    assert "FAILED, not measured: fp32 conv grad_weight nchw" in (tmp_path / "baseline.md").read_text()


def test_distances_never_let_nan_pass():
    reference = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert peers.distance(torch.tensor([3.0, 4.5]), reference) == 0.1
    assert peers.distance(torch.tensor([3.0, float("nan")]), reference) == math.inf
    assert peers.distance(torch.tensor([3.0]), reference) == math.inf
    assert peers.distance(torch.zeros(1), torch.zeros(1, dtype=torch.float64)) == math.inf  # zeros hide errors


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert baseline.main([]) == 1
    assert "no NVIDIA GPU" in capsys.readouterr().err


def test_it_needs_neither_the_extension_nor_rich():
    code = "import sys; sys.modules['fastconv'] = sys.modules['rich'] = None; from benchmarks.gpu import baseline; "
    code += "print('fine')"
    top = pathlib.Path(baseline.__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=top)
    assert done.stdout.strip() == "fine", done.stderr


def test_summaries_print_plainly_without_rich(tmp_path, monkeypatch, capsys):
    def missing(self, file=None):
        raise ImportError("rich")

    monkeypatch.setattr(summary.Table, "print", missing)
    run(tmp_path, "--modes", "fp32", "--networks", "alphago")
    assert "convolutions: geometric means" in capsys.readouterr().out


# Figures


def row(seconds, variant="forward", uses=("vgg16",), **more):
    return {
        "kind": "conv", "uses": {name: 1 for name in uses}, "batch": 32, "mode": "bf16", "layout": "nhwc",
        "variant": variant, "flops": 8e12, "minimum_bytes": 1e9, "seconds": seconds, **more,
    }  # fmt: skip


def test_rates_means_and_peaks_on_numbers_worked_by_hand():
    copy = {"kind": "copy", "uses": {}, "variant": "copy_", "flops": 0, "minimum_bytes": 4e9, "seconds": 1e-3}
    product = row(0.01, "mm", (), kind="gemm")  # 800 TFLOP/s
    best = summary.peaks([copy, product, {**copy, "seconds": 2e-3}, {**product, "seconds": 0.02}])
    assert best == {"copy_bytes_per_second": 4e12, "gemm_flops_per_second": {"bf16": 8e14}}
    rows = [summary.with_rates(r, best) for r in (row(0.02), row(0.08, uses=("vgg16", "resnet50")))]
    assert rows[0]["tflops"] == pytest.approx(400)
    assert rows[0]["gbytes_per_second"] == pytest.approx(50)
    assert rows[0]["of_gemm"] == pytest.approx(0.5)
    assert rows[0]["of_copy"] == pytest.approx(1e9 / 4e12 / 0.02)
    assert rows[0]["of_roofline"] == pytest.approx(0.5)  # arithmetic is the slower part
    memory = summary.with_rates(row(1e-3, flops=8e9), best)
    assert memory["of_roofline"] == pytest.approx(0.25)  # 1 GB at 4 TB/s in 1 ms
    found = {mean["network"]: mean for mean in summary.means(rows)}
    assert found["vgg16"]["tflops"] == pytest.approx(200)  # the root of 400 x 100
    assert found["vgg16"]["of_roofline"] == pytest.approx(0.25)
    assert (found["vgg16"]["layers"], found["vgg16"]["of"]) == (2, 9)
    assert found["resnet50"]["tflops"] == pytest.approx(100)
    assert summary.geometric_mean([2.0, 4.0, 8.0]) == pytest.approx(4.0)


def test_tables_show_the_means():
    best = {"copy_bytes_per_second": 4e12, "gemm_flops_per_second": {"bf16": 8e14}}
    measured = [row(0.02), row(0.04, "grad_weight"), row(0.01, "mm", kind="gemm")]
    measured[2].pop("layout")
    header = {"means": summary.means([summary.with_rates(r, best) for r in measured])}
    assert summary.conv_table(header).rows == [
        ["vgg16", "32", "bf16", "nhwc", "1/9", "400 (50%)", "", "", "", "200 (25%)", "800 (100%)"]
    ]


# What needs CUDA


def test_math_is_set_by_one_interface_only():
    class Legacy:
        def __setattr__(self, name, value):
            assert name != "allow_tf32", "torch refuses to mix its interfaces"
            super().__setattr__(name, value)

    new = types.SimpleNamespace(cudnn=Legacy(), cuda=types.SimpleNamespace(matmul=Legacy()))
    new.cudnn.conv = types.SimpleNamespace(fp32_precision="tf32")
    for name, conv, product in (("fp32", "ieee", "ieee"), ("tf32", "tf32", "tf32"), ("bf16", "tf32", "ieee")):
        assert modes.set_math(modes.MODES[name], new) == "fp32_precision"
        assert (new.cudnn.conv.fp32_precision, new.cuda.matmul.fp32_precision) == (conv, product)
    old = types.SimpleNamespace(
        cudnn=types.SimpleNamespace(), cuda=types.SimpleNamespace(matmul=types.SimpleNamespace())
    )
    assert modes.set_math(modes.MODES["tf32"], old) == "allow_tf32"
    assert old.cudnn.allow_tf32 is old.cuda.matmul.allow_tf32 is True
    modes.set_math(modes.MODES["fp32"], old)
    assert old.cudnn.allow_tf32 is old.cuda.matmul.allow_tf32 is False


@pytest.mark.parametrize("captures", [True, False], ids=["graphs", "no-graphs"])
def test_cuda_runs_through_a_stand_in(tmp_path, monkeypatch, captures):
    cuda = FakeCuda(captures)
    gpu = device.Cuda(cuda=cuda)
    gpu.torch_device = torch.device("cpu")
    gpu.arena_bytes = 8 << 20
    torch.set_num_threads(1)
    monkeypatch.setattr(device, "_MOST_CALLS", 4)
    monkeypatch.setattr(device, "_GRAPH_BELOW", 100.0)  # seconds: whatever else this machine does
    monkeypatch.setattr(baseline, "open_device", lambda kind: gpu)
    monkeypatch.setenv("PATH", str(tmp_path))  # an nvidia-smi that prints what a real one does
    smi = tmp_path / "nvidia-smi"
    smi.write_text(
        "#!/bin/sh\ncase \"$1\" in *driver*) echo 'NVIDIA H200, 580.159.03, 1980, 3201, 700.00, P0, 143771';;\n"
        "*) echo '1755, 3201, 512.30, 44, 97';; esac\n"
    )
    smi.chmod(0o755)
    out = tmp_path / "out"
    words = ["--quick", "--modes", "fp32", "--networks", "alphago,alexnet", "--out", str(out)]
    assert baseline.main(words) == 0
    data = json.loads((out / "baseline.json").read_text())
    assert cuda.stream == "main"
    assert data["machine"]["nvidia_smi"]["driver_version"] == "580.159.03"
    assert data["clocks"]["while_busy"]["clocks.sm"]["median"] == 1755
    assert "driver 580.159.03" in (out / "baseline.md").read_text()
    measured = [row for row in data["rows"] if row["kind"] == "conv"]
    if captures:
        assert {row["timer"] for row in measured} == {"graph"}
        assert not any("no_graph" in row for row in measured)
        assert all(row["calls_per_sample"] >= row["copies"] for row in measured)
    else:
        assert {row["timer"] for row in measured} == {"events"}
        reason = "operation not permitted when stream is capturing"
        assert {row["no_graph"] for row in data["rows"] if "no_graph" in row} >= {reason}


def test_captures_that_keep_failing_are_given_up():
    gpu = device.Cuda(cuda=FakeCuda(captures=False))
    reasons = [gpu.sampler(lambda i: i, 2, 1e-5)[1] for _ in range(9)]
    assert set(reasons[:8]) == {"operation not permitted when stream is capturing"}
    assert reasons[8] == "not tried after 8 captures that failed"


def test_a_lost_gpu_ends_the_run_and_keeps_its_rows(tmp_path, monkeypatch):
    honest, lost = peers.conv_calls, []

    def broken(layer):
        def call(*operands):
            if layer.kernel == 5:
                lost.append(layer)
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            return honest(layer)["grad_input"](*operands)

        return {**honest(layer), "grad_input": call}

    def synchronize(self):
        if lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(peers, "conv_calls", broken)
    monkeypatch.setattr(device.Cpu, "synchronize", synchronize)
    status, data = run(tmp_path, "--modes", "fp32", "--networks", "alphago")
    assert status == 1
    assert data["stopped_by"] == "an error (RuntimeError: CUDA error: an illegal memory access was encountered)"
    assert data["rows"]


def test_events_rotate_the_copies_and_divide_by_the_calls():
    seen = []
    sampler = device._Events(FakeCuda(), lambda i: seen.append(i) or i, copies=3, calls=4)
    assert seen == [0, 1, 2, 0]  # all copies once and one more: memory for results is there
    seen.clear()
    sampler.sample()
    assert seen == [1, 2, 0, 1, 2]  # one untimed, four timed, on from where the last ended


def test_a_call_that_runs_out_of_memory_is_skipped_and_named(tmp_path, monkeypatch):
    honest = peers.conv_calls

    def greedy(layer):
        def call(*operands):
            if layer.kernel == 5:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB\nmore")
            return honest(layer)["forward"](*operands)

        return {**honest(layer), "forward": call}

    monkeypatch.setattr(peers, "conv_calls", greedy)
    status, data = run(tmp_path, "--modes", "fp32", "--networks", "alphago")
    assert status == 0
    (reason,) = data["skipped"]
    assert reason == "OutOfMemoryError: CUDA out of memory. Tried to allocate 1 GiB"
    assert all("r5s5" in what for what in data["skipped"][reason])
    assert any("r3s3" in row["problem"] and row["variant"] == "forward" for row in data["rows"])


def test_arenas_hand_out_aligned_memory_that_does_not_overlap():
    arena = device.Arena(device.Cpu(), torch.bfloat16, 1 << 16)
    sets = arena.sets(3, ((2, 3, 5, 7), "nhwc"), ((5,),))
    ends = 0
    for x, bias in sets:
        assert x.is_contiguous(memory_format=torch.channels_last)
        for tensor in (x, bias):
            begin = tensor.storage_offset() * 2
            assert begin % 256 == 0 and begin >= ends
            ends = begin + tensor.numel() * 2
    assert len(sets) == 3
    assert len(arena.sets(1000, ((1024,),))) == 32  # as many as fit
    with pytest.raises(device.TooLarge, match="exceed"):
        arena.sets(1, ((1 << 16,),))
    assert device.copies_for(device.Cpu(), 1 << 30) == {"copies": 1, "cold": True}
    assert device.copies_for(device.Cpu(), 1000) == {"copies": 132, "cold": True}  # 2 x 64 KiB
    assert device.copies_for(device.Cpu(), 10) == {"copies": 512, "cold": False}


def test_max_poolings_own_offsets_are_counted():
    pool = MaxPool("pool", 3, 2)
    bf16 = modes.MODES["bf16"]
    x, y = 2 * formulas.elements((8, 13, 13)), 2 * formulas.elements((8, 6, 6))
    assert problems.pool_bytes(pool, (8, 13, 13), 2, bf16) == 2 * (x + y)
    assert problems.pool_bytes(pool, (8, 13, 13), 2, bf16, "grad_input") == 2 * (x + y) + y
    assert machine.clock_summary([]) == {}
