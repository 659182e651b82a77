"""The benchmarks' formulas against numbers worked by hand; inputs, measuring, verifying, tables."""

import fastconv
import pytest
import torch
from benchmarks import cases, contestants, formulas, inputs, measure, networks, operands, table, verify

_C = fastconv.ops.extension()
NETWORKS = networks.NETWORKS
EVERY_LAYER = [
    pytest.param(layer, before, after, id=f"{network.name}-{layer.name}")
    for network in (NETWORKS[name] for name in ("lenet5", "alexnet", "alexnet-ungrouped", "vgg16", "edge-detection"))
    for layer, before, after in network.walk()
]


def test_formulas_on_numbers_worked_by_hand():
    assert formulas.window_positions(7, 3) == 5
    assert formulas.window_positions(7, 3, stride=2) == 3
    assert formulas.window_positions(227, 11, stride=4) == 55
    assert formulas.window_positions(32, 5, padding=2) == 32
    assert formulas.window_positions(9, 3, dilation=3) == 3  # a reach of 7 in 9
    assert formulas.window_positions(6, 3, stride=2) == 2
    assert formulas.window_positions(6, 3, stride=2, ceil_mode=True) == 3
    assert formulas.window_positions(5, 1, stride=2, padding=0, ceil_mode=True) == 3
    assert formulas.window_positions(3, 1, stride=3, padding=0, ceil_mode=True) == 1  # a second would start outside
    assert formulas.conv_parameters(10, 3, 5, 5) == 760
    assert formulas.conv_parameters(256, 96, 5, 5, groups=2) == 307_456
    assert formulas.conv_macs(2, 64, 4, 5, 3, 3, 3) == 2 * 64 * 20 * 27
    assert formulas.conv_macs(1, 4, 1, 1, 4, 1, 1, groups=4) == 4
    assert formulas.linear_parameters(400, 120) == 48_120
    assert formulas.pool_flops(1, 6, 14, 14, 2, 2) == 4704
    assert formulas.layer_bytes(100, 10, 50) == 640
    assert formulas.layer_bytes(100, 0, 25, offset_bytes=1) == 525
    assert formulas.roofline_seconds(6e9, 1e9, 3e9, 1e9) == 2.0
    assert formulas.roofline_seconds(6e9, 5e9, 3e9, 1e9) == 5.0


@pytest.mark.parametrize("layer, before, after", EVERY_LAYER)
def test_formulas_agree_with_the_extensions_problems(layer, before, after):
    if layer.kind == "linear":
        assert layer.macs(before, 3) == 3 * formulas.elements(before) * after[0]
        return
    facts = _C.problem_facts(_C.problem_text(layer.problem(before, 3, "nchw")))
    assert (facts["p"], facts["q"]) == after[1:]
    assert facts["flops"] == layer.flops(before, 3)
    assert facts.get("macs", 0) == layer.macs(before, 3)
    x, y = 3 * formulas.elements(before), 3 * formulas.elements(after)
    assert facts["minimum_bytes"] == formulas.layer_bytes(x, layer.parameters(before), y)


@pytest.mark.parametrize("image", inputs.IMAGES)
@pytest.mark.parametrize("shape", [(3, 224, 224), (1, 32, 32), (1, 280, 320)], ids=str)
def test_inputs_fit_and_are_pictures(image, shape):
    x = inputs.load(image, shape, batch=2)
    assert x.shape == (2, *shape)
    assert x.dtype == torch.float32
    assert x.is_contiguous()
    assert 0.5 < float(x.std()) < 2
    assert not torch.equal(x[0], x[1])
    assert torch.equal(x, inputs.load(image, shape, batch=2))


def test_a_photo_is_normalised_with_imagenets_mean_and_deviation():
    x = inputs.load("china", (3, 224, 224))
    for channel, mean, deviation in zip(x[0], (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True):
        pixels = channel * deviation + mean
        assert -1e-6 <= float(pixels.min()) < 0.2
        assert 0.8 < float(pixels.max()) <= 1 + 1e-6


def test_contestants_take_turns_and_repeat_short_calls():
    calls = []
    samples = {"a": [], "b": []}
    seen = []
    contestants = {name: lambda name=name: calls.append(name) for name in samples}
    measure.interleaved(contestants, samples, least_rounds=4, least_seconds=1e-9, tick=seen.append)
    assert len(samples["a"]) == len(samples["b"]) == 4
    assert seen[-1] == 1.0
    after_warming = "".join(calls)[4:]
    order = [c for i, c in enumerate(after_warming) if i == 0 or c != after_warming[i - 1]]
    assert "".join(order) == "ababa"  # rounds a b, b a, a b, b a; equal neighbours merged


def test_ratio_pairs_the_rounds():
    # a slow second round on both sides: the ratio of medians would be 2 as well, that of unpaired samples not
    assert measure.ratio([2.0, 20.0, 4.0], [1.0, 10.0, 2.0]) == {"median": 2.0, "q1": 2.0, "q3": 2.0}
    assert measure.summary([3.0, 1.0, 2.0]) == {"median": 2.0, "q1": 1.5, "q3": 2.5, "best": 1.0, "count": 3}
    assert measure.spread([1.0, 2.0, 3.0]) == 0.25
    with pytest.raises(ValueError, match="zip"):
        measure.ratio([1.0], [1.0, 2.0])


def test_errors_never_let_nan_pass():
    reference = torch.tensor([1.0, -4.0], dtype=torch.float64)
    assert verify.error(torch.tensor([1.0, -3.0]), reference) == 0.25
    assert verify.error(torch.tensor([1.0, float("nan")]), reference) == float("inf")
    assert verify.error(torch.tensor([1.0, float("inf")]), reference) == float("inf")
    assert verify.error(torch.tensor([1.0]), reference) == float("inf")
    assert verify.error(torch.tensor([0.0]), torch.tensor([0.0])) == 0.0
    assert verify.complaint(["output"], [2e-7], [1e-7]) is None
    assert "exceeds" in verify.complaint(["output"], [4e-7], [1e-7])
    assert verify.complaint(["output"], [2e-6], [1e-7], accuracy="fast") is None
    assert verify.complaint(["output"], [4e-3], [0.0], dtype="bf16") is None  # one rounding: 2^-7
    assert "exceeds" in verify.peer_complaint(["output"], [3e-3], [1e-7])  # a peer that computes in bf16 or tf32
    assert verify.peer_complaint(["output"], [1e-5], [1e-7]) is None
    assert "exceeds" in verify.torch_complaint(["output"], [3e-3])
    assert "gradient of weight" in verify.complaint(["output", "gradient of weight"], [0.0, float("nan")], [0.0, 0.0])


def conv_case(**fields):
    given = {"n": 2, "c": 3, "h": 8, "w": 8, "k": 5, "r": 3, "s": 3, "pad_top": 1, "pad_left": 1, **fields}
    common = {"kind": "conv", "stride_h": 1, "stride_w": 1, "groups": 1, "dtype": "f32", "bias": True}
    return cases.Case("layer", "test", {**common, "activation": "relu", **given})


def pool_case(kind):
    sizes = {"n": 2, "c": 3, "h": 8, "w": 8, "r": 2, "s": 2, "stride_h": 2, "stride_w": 2, "pad_top": 0, "pad_left": 0}
    return cases.Case("pool", "test", {"kind": kind, "ceil_mode": False, "dtype": "f32", **sizes})


def test_saved_bytes_are_what_backward_keeps():
    def saved(case, side):
        return contestants.saved_for_backward(case, side, operands.Operands(case).of("nchw"))

    conv = conv_case()
    # input and output, 4 bytes each; the weight is a parameter
    assert saved(conv, "torch") == saved(conv, "fastconv") == 4 * 2 * 64 * (3 + 5)
    pool = pool_case("max")
    assert saved(pool, "torch") == 4 * 2 * 3 * 64 + 8 * 2 * 3 * 16  # input, 64-bit indices
    assert saved(pool, "fastconv") == 2 * 3 * 16  # 8-bit offsets
    assert saved(pool_case("avg"), "fastconv") == 0


def sample_table():
    t = table.Table("title", [table.Column("key"), table.Column("wide", group=1), table.Column("n", True, group=2)])
    t.row(["a", "x" * 30, "1"])
    t.row(["", "second line", ""])
    t.total(["sum", "", "12"])
    t.note("a note")
    return t


def test_plain_tables_are_aligned():
    lines = sample_table().text().splitlines()
    assert lines[2] == "key  wide                             n"
    assert lines[4] == f"a    {'x' * 30}   1"
    assert lines[7] == "sum                                  12"
    assert lines[-1] == "* a note"
    with pytest.raises(ValueError, match="2 cells for 3 columns"):
        sample_table().row(["a", "b"])


def test_narrow_terminals_get_two_tables():
    first, second = sample_table().part(1), sample_table().part(2)
    assert [c.name for c in first.columns] == ["key", "wide"]
    assert [c.name for c in second.columns] == ["key", "n"]
    assert len(first.rows) == 2
    assert second.rows == [["a", "1"]]  # a line that says nothing in this half goes


def test_numbers_for_readers():
    assert [table.count(v) for v in (0, 999, 3_211_264, 15_470_264_320)] == ["0", "999", "3.2M", "15.5G"]
    assert [table.megabytes(v) for v in (40, 36_500, 60_950_432)] == ["40 B", "36.5 kB", "61.0 MB"]
    assert [table.milliseconds(v) for v in (1.5, 0.25, 0.0123, 5e-6)] == ["1500", "250.0", "12.30", "0.0050"]


def test_nearest_names():
    assert networks.nearest("vg16", NETWORKS)[0] == "vgg16"
    assert set(networks.nearest("alexnt", NETWORKS)) >= {"alexnet", "alexnet-ungrouped"}
    assert networks.nearest("zzz", NETWORKS) == list(NETWORKS)


def test_gradients_are_checked_away_from_relus_kink_only():
    one = {"n": 1, "c": 1, "h": 2, "w": 2, "k": 1, "r": 1, "s": 1, "pad_top": 0, "pad_left": 0}
    x = torch.tensor([1.0, -1.0, 1e-7, -1e-7]).view(1, 1, 2, 2)
    case = conv_case(**one).replace(direction="train", tensors=(x, torch.ones(1, 1, 1, 1), torch.zeros(1)))
    made = operands.Operands(case)
    assert (made.of("nchw").dy.flatten() != 0).tolist() == [True, True, False, False]
    assert made.result_names() == ["output", "gradient of input", "gradient of weight", "gradient of bias"]
    reference = [t.detach() for t in made.reference(contestants.torch_results)]
    assert len(reference) == 4
    right = verify.errors(contestants.fastconv_call(case, made.of("nhwc"), "auto")(), reference)
    assert max(right) < 1e-6
    tensors = made.of("nchw")
    tensors.weight = (1.01 * tensors.weight.detach()).requires_grad_()
    wrong = verify.errors(contestants.torch_results(case, tensors), reference)
    assert all(e > 5e-3 for e in (wrong[0], wrong[1]))


def test_networks_compare_output_gradients_and_top_five():
    y = torch.linspace(0, 1, 10).view(1, 10)
    gradient = torch.ones(100)
    assert verify.compare_networks([y, gradient], [y, gradient])["ok"]
    swapped = y.clone()
    swapped[0, 8], swapped[0, 9] = y[0, 9], y[0, 8]
    assert not verify.compare_networks([swapped], [y])["ok"]
    assert not verify.compare_networks([y, 1.02 * gradient], [y, gradient])["ok"]
    assert verify.compare_networks([y, 1.02 * gradient], [y, gradient], usual=0.011)["ok"]
    assert not verify.compare_networks([y, 1.02 * gradient], [y, gradient], usual=0.009)["ok"]
    assert not verify.compare_networks([y, gradient * float("nan")], [y, gradient])["ok"]
    assert not verify.compare_networks([y + float("nan")], [y])["ok"]
