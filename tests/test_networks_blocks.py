"""The words that networks are described in: how blocks join, what is refused, the printed table, the problems."""

from collections import Counter

import fastconv
import pytest
import torch
from benchmarks import formulas, models, networks
from benchmarks.blocks import Branches, Head, Network, concat, residual, scaled
from benchmarks.describe import describe
from benchmarks.layers import Activation, AvgPool, Conv, ConvTranspose, Crop, GlobalAvgPool, Linear, MaxPool
from benchmarks.networks.problems import DIRECTIONS, problems

_C = fastconv.ops.extension()
NETWORKS = networks.NETWORKS


def network(*layers, shape=(3, 8, 9)):
    return Network("test", "a test", "nobody", shape, layers)


def test_branches_join():
    shape = (4, 6, 5)
    one = Conv("one", 3, 1)
    assert concat("join", one, (Conv("a", 2, 1), Conv("b", 7, 3, padding=1))).output_shape(shape) == (10, 6, 5)
    assert concat("join", one, ()).output_shape(shape) == (7, 6, 5)
    assert residual("join", Conv("same", 4, 3, padding=1)).output_shape(shape) == shape
    gate = GlobalAvgPool("mean"), Linear("expand", 4), Activation("gate", "sigmoid")
    assert scaled("join", *gate).output_shape(shape) == shape
    assert scaled("join", GlobalAvgPool("mean")).output_shape(shape) == shape
    cropped = Branches("join", ((Conv("large", 2, 1),), (Conv("small", 2, 3),)), "add", crop=1)
    assert cropped.output_shape(shape) == (2, 4, 3)
    assert Head("aside", gate).output_shape(shape) == shape


@pytest.mark.parametrize("block, words", [
    (residual("block", Conv("wider", 5, 1)), r"block: cannot add \(5, 6, 5\), \(4, 6, 5\)"),
    (concat("block", (), MaxPool("pool", 2, 2)), r"block: cannot concat \(4, 6, 5\), \(4, 3, 2\)"),
    (scaled("block", Linear("gate", 3)), r"block: cannot scale \(4, 6, 5\), \(3,\)"),
    (Branches("block", ((), (Conv("small", 4, 3),)), "add", crop=3), "block crop: 4x3 at 3 does not lie in 6x5"),
    (Crop("window", (6, 5), 1), "window: 6x5 at 1 does not lie in 6x5"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(block, words):
    with pytest.raises(ValueError, match=words):
        block.output_shape((4, 6, 5))


def test_same_padding_keeps_the_size_or_is_refused():
    layer = Conv("conv", 8, (5, 3), padding="same")
    assert layer.output_shape((3, 7, 9)) == (8, 7, 9)
    assert layer.as_run((3, 7, 9)) == Conv("conv", 8, (5, 3), padding=(2, 1))
    assert Conv("conv", 8, 3, padding="same").as_run((3, 7, 9)) == Conv("conv", 8, 3, padding=1)
    for bad in ({"kernel": 4}, {"kernel": 3, "stride": 2}):
        with pytest.raises(ValueError, match="'same' takes stride 1 and an odd kernel"):
            Conv("conv", 8, padding="same", **bad)
    with pytest.raises(ValueError, match="but got 'valid'"):
        Conv("conv", 8, 3, padding="valid")


def test_two_layers_of_a_block_may_not_share_a_name():
    twice = concat("block", Conv("same", 2, 1), Conv("same", 2, 1))
    with pytest.raises(ValueError, match="two layers of a block are called same"):
        models.build(network(twice))


def test_paths_name_layers_and_their_modules():
    inner = concat("inner", Conv("a", 2, 1), Conv("b", 2, 1, relu=True))
    found = network(Conv("first", 2, 1), residual("outer", (inner, Conv("c", 2, 1))), Linear("last", 5))
    names = ["first", "outer.inner.a", "outer.inner.b", "outer.c", "last"]
    assert [layer.name for layer, _, _ in found.walk()] == names
    assert [step.path for step in found.steps()] == ["first", "outer", "outer.inner", *names[1:]]
    assert [step.path for step in found.steps() if step.outermost] == ["first", "outer", "last"]
    model = models.build(found)
    assert all(isinstance(model.get_submodule(n), torch.nn.Conv2d | torch.nn.Linear) for n in names)
    # a 1x1 and an identity by hand
    x = torch.randn(1, 3, 8, 9)
    first = model.first(x)
    inner = torch.cat([model.outer.inner.a(first), model.outer.inner.b(first).relu()], 1)
    assert torch.equal(model[:2](x), (first + model.outer.c(inner)).relu())


def test_scaling_and_cropping_do_what_they_say():
    x = torch.randn(2, 3, 8, 9)
    model = models.build(network(scaled("se", GlobalAvgPool("mean"), Linear("fc", 3))))
    gate = model.se.fc(x.mean((2, 3)))
    torch.testing.assert_close(model(x), x * gate.view(2, 3, 1, 1))
    model = models.build(network(Branches("sum", ((Conv("large", 3, 1),), (Conv("small", 3, 5),)), "add", crop=2)))
    large, small = model.sum.large(x), model.sum.small(x)
    assert torch.equal(model(x), large[:, :, 2:6, 2:7] + small)


def test_initial_weights_keep_activations_alive_and_are_the_seeds():
    found = NETWORKS["resnet18"]
    first, again, other = (models.build(found, seed) for seed in (1, 1, 2))
    for (name, a), b, c in zip(
        first.state_dict().items(), again.state_dict().values(), other.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)
        assert name.endswith("num_batches_tracked") or not torch.equal(a, c)
    with torch.no_grad():
        y = models.build(NETWORKS["resnet152"])(torch.randn(2, 3, 64, 64))  # 50 blocks: each could double the variance
    assert 0.1 < float(y.std()) < 100


def test_twins_share_linear_layers_only():
    model = models.build(NETWORKS["lenet5"])
    twin = models.twin(model, "nhwc")
    assert twin.C5.weight is model.C5.weight
    assert twin.C3.weight is not model.C3.weight
    assert twin.C3.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(twin.C3.weight, model.C3.weight)


def test_weight_and_bias_are_what_a_kernel_is_given():
    plain, normed = Conv("plain", 4, 3), Conv("normed", 5, 3, bias=False, norm=True)
    both = Conv("both", 6, 1, norm=True)
    model = models.build(network(plain, concat("block", normed, Conv("wide", 2, 3)), both))
    x = torch.randn(2, 3, 8, 9)
    weight, bias = models.weight_and_bias(model, "plain")
    assert weight.data_ptr() == model.plain.weight.data_ptr()
    assert torch.equal(bias, model.plain.bias)
    y = model.plain(x)
    folded = torch.nn.functional.conv2d(y, *models.weight_and_bias(model, "block.normed"))
    torch.testing.assert_close(folded, model.block.normed_bn(model.block.normed(y)))
    joined = model.block(y)
    folded = torch.nn.functional.conv2d(joined, *models.weight_and_bias(model, "both"))
    torch.testing.assert_close(folded, model(x))
    weight, bias = models.weight_and_bias(model.train(), "block.normed")
    assert weight.data_ptr() == model.block.normed.weight.data_ptr()
    assert bias is None


def test_describe_prints_the_figures_of_the_courses():
    text = describe(NETWORKS["vgg16"]).text()
    for figure in ("138,357,544", "3,211,264", "3.2M", "15.2M", "61.0 MB", "15,470,264,320", "24M", "28.8M"):
        assert figure in text
    text = describe(NETWORKS["alexnet"]).text()
    for figure in ("60,965,224", "62,378,344", "55x55x96", "27x27x256", "13x13x384", "6x6x256"):
        assert figure in text
    text = describe(NETWORKS["edge-detection"]).text()
    for figure in ("267,960", "357,280"):
        assert figure in text


def test_describe_prints_blocks_with_their_branches_indented():
    lines = [line[:38].rstrip() for line in describe(NETWORKS["googlenet"]).text().splitlines()]
    at = lines.index("inception_3a    concat of 4")
    assert lines[at + 1 : at + 8] == [
        "  - 1x1         conv 1x1 + ReLU",
        "  - 3x3_reduce  conv 1x1 + ReLU",
        "    3x3         conv 3x3 pad 1 + ReLU",
        "  - 5x5_reduce  conv 1x1 + ReLU",
        "    5x5         conv 5x5 pad 2 + ReLU",
        "  - pool        max pool 3x3 stride 1",
        "    pool_proj   conv 1x1 + ReLU",
    ]
    text = describe(NETWORKS["googlenet"]).text()
    assert "auxiliary head, in training only" in text
    assert "without the 2 auxiliary heads and their 6,379,728 parameters" in text


def test_describe_prints_a_repeated_block_as_one_line_with_its_sums():
    lines = describe(NETWORKS["resnet50"]).text().splitlines()
    repeated = [line.split() for line in lines if "the same as" in line]
    assert [line[0] for line in repeated] == [
        *("conv2_3", "conv3_3", "conv3_4"), *("conv4_3", "conv4_4", "conv4_5", "conv4_6"), "conv5_3"
    ]  # fmt: skip
    # conv4_2 by hand: 1x1 1024 -> 256, 3x3 256 -> 256, 1x1 256 -> 1024, two numbers per normalised channel
    parameters = 1024 * 256 + 9 * 256 * 256 + 256 * 1024 + 2 * (256 + 256 + 1024)
    assert repeated[3][4:] == [
        *("conv4_2", "14x14x1024", f"{14 * 14 * (256 + 256 + 1024 + 1024):,}", "502K", "2.0", "MB"),
        *(f"{parameters:,}", "218,365,952", "436,731,904"),
    ]
    assert sum(line.strip().startswith("- identity") for line in lines) == 4


def test_describe_splits_into_memory_and_arithmetic_on_narrow_terminals():
    table = describe(NETWORKS["lenet5"])
    memory, arithmetic = ([column.name for column in table.part(group).columns] for group in (1, 2))
    assert memory == ["layer", "kind", "output (HxWxC)", "activations", "", "memory"]
    assert arithmetic == ["layer", "output (HxWxC)", "parameters", "MACs", "FLOPs"]


@pytest.mark.parametrize("name", NETWORKS)
def test_described_columns_add_up(name):
    table = describe(NETWORKS[name])
    asides, kept = False, []
    for row in table.rows:
        asides = row[1].startswith("auxiliary") if not row[0].startswith(" ") else asides
        kept += [] if asides else [row]
    for column in (3, 6, 7, 8):
        numbers = [int(row[column].replace(",", "")) for row in kept if row[column]]
        assert f"{sum(numbers):,}" == table.totals[0][column]
    assert table.totals[0][3] == f"{NETWORKS[name].activations():,}"


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_problems_are_all_layers_and_each_once(name, direction):
    training = direction != "forward"
    walked = [s for s in NETWORKS[name].walk(training) if s[0].kind != "linear"]
    expected = {
        "forward": walked,
        "grad_input": walked[1:],
        "grad_weight": [s for s in walked if s[0].kind not in ("max", "avg")],
    }[direction]
    found = problems(NETWORKS[name], 2, "nhwc", direction)
    texts = [_C.problem_text(problem.fields) for problem in found]
    assert len(set(texts)) == len(texts)
    assert Counter(n for p in found for n in p.layers) == Counter(layer.name for layer, _, _ in expected)
    assert sum(problem.count for problem in found) == len(expected)
    # the extension counts the same work as the description
    facts = [(_C.problem_facts(text), problem.count) for text, problem in zip(texts, found, strict=True)]
    if direction != "grad_weight":
        assert sum(fact["flops"] * n for fact, n in facts) == sum(layer.flops(b, 2) for layer, b, _ in expected)
    assert sum(fact.get("macs", 0) * n for fact, n in facts) == sum(layer.macs(b, 2) for layer, b, _ in expected)
    for fact, problem in zip(facts, found, strict=True):
        layer, before, after = next(s for s in expected if s[0].name == problem.layers[0])
        plane = before if layer.kind == "conv_transpose" else after
        assert (fact[0]["p"], fact[0]["q"]) == plane[1:]


def texts_of(*arguments, **options):
    return {_C.problem_text(p.fields): p.layers for p in problems(*arguments, **options)}


def test_problems_in_words():
    found = texts_of(NETWORKS["resnet18"], 8, "nhwc")
    assert found["conv n8c64h56w56 k64r3s3 st1 pd1 dl1 g1 f32 nhwc fwd bias relu"] == (
        "conv2_1.conv1",
        "conv2_2.conv1",
    )  # folded, and the second of each block has no ReLU of its own
    assert len(found["conv n8c64h56w56 k64r3s3 st1 pd1 dl1 g1 f32 nhwc fwd bias"]) == 2
    assert found["avgpool n8c512h7w7 r7s7 st7 pd0 dl1 f32 nhwc fwd"] == ("pool",)
    found = texts_of(NETWORKS["resnet18"], 8, "nhwc", training=True)
    assert len(found["conv n8c64h56w56 k64r3s3 st1 pd1 dl1 g1 f32 nhwc fwd"]) == 4
    assert "maxpool n8c64h112w112 r3s3 st2 pd1 dl1 f32 nhwc fwd off8" in found
    found = texts_of(NETWORKS["inception-v4"])
    assert len(found["avgpool n1c384h35w35 r3s3 st1 pd1 dl1 f32 nchw fwd nopad"]) == 4
    found = texts_of(NETWORKS["fcn8s"])
    assert found["conv n1c21h70w70 k21r4s4 st2 pd0 dl1 g1 f32 nchw grad_input"] == ("fuse_pool3.upscore_pool4",)
    asides = [name for names in texts_of(NETWORKS["googlenet"], direction="grad_input").values() for name in names]
    assert "auxiliary1.pool" in asides
    with pytest.raises(ValueError, match="direction is one of forward, grad_input, grad_weight, but got 'fwd'"):
        problems(NETWORKS["lenet5"], direction="fwd")


@pytest.mark.parametrize("stride, padding", [(2, 1), ((3, 1), (0, 2))], ids=str)
def test_a_transposed_convolution_is_a_convolutions_gradient(stride, padding):
    layer = ConvTranspose("up", 4, (4, 5), stride, padding)
    shape = (3, 5, 7)
    module = models.build(network(layer, shape=shape)).up
    x = torch.randn(2, *shape)
    y = module(x)
    assert y.shape[1:] == layer.output_shape(shape)
    assert sum(p.numel() for p in module.parameters()) == layer.parameters(shape)
    fields = layer.problem(shape, 2, "nchw")
    facts = _C.problem_facts(_C.problem_text(fields))
    assert (facts["p"], facts["q"]) == shape[1:]
    assert facts["macs"] == layer.macs(shape, 2) == 2 * formulas.elements(shape) * 4 * 20
    assert _C.problem_text(fields).endswith(" nchw grad_input bias")
    assert [layer.problem(shape, 2, "nchw", d)["pass"] for d in DIRECTIONS] == ["grad_input", "forward", "grad_weight"]


def test_formulas_of_normalisation_and_transposed_convolution():
    assert formulas.norm_parameters(64) == 128
    assert formulas.transposed_size(16, 4, stride=2) == 34
    assert formulas.transposed_size(7, 4, stride=2, padding=1) == 14
    assert formulas.window_positions(formulas.transposed_size(9, 5, 3, 1), 5, 3, 1) == 9


def test_pools_keep_offsets_as_large_as_their_window_needs():
    assert [MaxPool("pool", size, 1).offset_bytes() for size in (2, 15, 16, 255, 256)] == [1, 1, 2, 2, 4]
    assert AvgPool("pool", 16, 1).offset_bytes() == 0
