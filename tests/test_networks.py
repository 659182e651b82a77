"""The networks' descriptions against published figures, and against the modules that are built from them."""

import dataclasses

import pytest
import torch
from benchmarks import formulas, models, networks
from benchmarks.layers import pair
from benchmarks.networks import resnet
from torch.utils.flop_counter import FlopCounterMode

NETWORKS = networks.NETWORKS
every_network = pytest.mark.parametrize("name", NETWORKS)

# Exact counts. Where a paper prints millions only, the exact figure is that of the published weights of its network.
PARAMETERS = {
    "lenet5": 61_706,  # with a full C3: 156 + 2,416 + 48,120 + 10,164 + 850; the paper's sparse C3 has 900 fewer
    "alexnet": 60_965_224,  # the Caffe model of Krizhevsky's net; the paper says 60 million
    "alexnet-ungrouped": 62_378_344,
    "zfnet": 62_357_608,  # layer by layer: 14,208 + 614,656 + 885,120 + 1,327,488 + 884,992 + 37,752,832 + ...
    "vgg11": 132_863_336,  # torchvision's table of weights, like the next ones; the paper, table 2: 133 million
    "vgg13": 133_047_848,  # the paper: 133 million
    "vgg16-c": 138_357_544 - 8 * 256**2 - 2 * 8 * 512**2,  # D with 1x1 for three 3x3; the paper: 134 million
    "vgg16": 138_357_544,  # the paper: 138 million
    "vgg19": 143_667_240,  # the paper: 144 million
    "googlenet": 13_378_280,  # both auxiliary classifiers; 6,998,552 without them: BVLC's Caffe model
    "bn-inception": 11_295_240 - 10_016,  # Cadene's pretrained-models.pytorch, less its 10,016 convolutions' biases
    "inception-v4": 42_679_816,  # Cadene's and timm's
    "xception": 22_855_952,  # the paper, table 3
    "resnet18": 11_689_512,  # torchvision's table of weights, like the next four
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "se-resnet50": 28_088_024,  # Cadene's; the paper: 2/16 of the sum of squared channels more than ResNet-50
    # squares of BN-Inception's channels over 8, and biases of both layers
    "se-inception": 11_285_224
    + sum(c * (c // 16) * 2 + c + c // 16 for c in (256, 320, 576, 576, 576, 608, 608, 1056, 1024, 1024)),
    # VGG-16's 134,260,544 up to fc7 (the paper, table 1: 134 million), three 1x1 scores, three upsamplings
    "fcn8s": 134_260_544 + 21 * (4096 + 512 + 256 + 3) + 21**2 * (4**2 + 4**2 + 16**2),
    "alphago": 48 * 192 * 25 + 192 + 11 * (192 * 192 * 9 + 192) + 192 + 361,  # Methods: a bias for each point
    "vit-b16-patches": 16 * 16 * 3 * 768 + 768,
    "course": 12 * 28 + 24 * 109 + 10 * 1537,
    "course-same": 32 * 76 + 64 * 801 + 128 * 4097 + 10 * 129,
    "edge-detection": 2,
}

# Billions of multiply-accumulates of one image, as printed
MACS = {
    "alexnet": "0.724",  # Sze et al., arXiv:1703.09039, table II
    "vgg11": "7.61",  # torchvision's table of weights ("GFLOPS", a multiply-add counted once)
    "vgg13": "11.31",
    "vgg16": "15.47",
    "vgg19": "19.63",
    "bn-inception": "2.03",  # Hu et al., arXiv:1709.01507, table 2
    "inception-v4": "12.3",  # timm's model card
    "xception": "8.4",  # timm's model card of legacy_xception
    "resnet18": "1.81",  # torchvision's table of weights
    "resnet34": "3.66",
    "resnet50": "4.09",
    "resnet101": "7.80",
    "resnet152": "11.51",
    "edge-detection": "0.000179",
}

# Millions of elements that convolutions and linear layers put out: "Activations (M)" of timm's model cards
ACTIVATIONS = {
    "vgg11": "7.4",
    "vgg16": "13.6",
    "vgg19": "14.9",
    "inception-v4": "15.1",
    "xception": "35.8",
    "resnet18": "2.5",
    "resnet34": "3.7",
    "resnet50": "11.1",
    "resnet101": "16.2",
    "resnet152": "22.6",
    "se-resnet50": "10.6",  # legacy_seresnet50, which has its strides in the 1x1 convolutions too
}

# (channels, height, width) after layers and blocks, from the papers' tables and figures
SIZES = {
    # LeCun et al. 1998, figure 2: C1 6@28x28, S2 6@14x14, C3 16@10x10, S4 16@5x5, C5 120, F6 84, output 10
    "lenet5": {
        **{"C1": (6, 28, 28), "S2": (6, 14, 14), "C3": (16, 10, 10), "S4": (16, 5, 5)},
        **{"C5": (120,), "F6": (84,), "output": (10,)},
    },
    # Krizhevsky et al. 2012, figure 2
    "alexnet": {
        **{"conv1": (96, 55, 55), "pool1": (96, 27, 27), "conv2": (256, 27, 27), "conv3": (384, 13, 13)},
        **{"conv4": (384, 13, 13), "conv5": (256, 13, 13), "pool5": (256, 6, 6)},
    },
    # Zeiler and Fergus, arXiv:1311.2901, figure 3
    "zfnet": {
        **{"conv1": (96, 110, 110), "pool1": (96, 55, 55), "conv2": (256, 26, 26), "pool2": (256, 13, 13)},
        **{"conv3": (384, 13, 13), "conv5": (256, 13, 13), "pool5": (256, 6, 6)},
    },
    # Szegedy et al., arXiv:1409.4842, table 1; the auxiliary classifiers: section 5, 4x4x512 and 4x4x528
    "googlenet": {
        **{"conv1": (64, 112, 112), "pool1": (64, 56, 56), "conv2": (192, 56, 56), "pool2": (192, 28, 28)},
        **{"inception_3a": (256, 28, 28), "inception_3b": (480, 28, 28), "pool3": (480, 14, 14)},
        **{"inception_4a": (512, 14, 14), "inception_4b": (512, 14, 14), "inception_4c": (512, 14, 14)},
        **{"inception_4d": (528, 14, 14), "inception_4e": (832, 14, 14), "pool4": (832, 7, 7)},
        **{"inception_5a": (832, 7, 7), "inception_5b": (1024, 7, 7), "pool5": (1024, 1, 1)},
        **{"auxiliary1.pool": (512, 4, 4), "auxiliary2.pool": (528, 4, 4)},
    },
    # Ioffe and Szegedy, arXiv:1502.03167, figure 5
    "bn-inception": {
        **{"inception_3a": (256, 28, 28), "inception_3b": (320, 28, 28), "inception_3c": (576, 14, 14)},
        **{"inception_4a": (576, 14, 14), "inception_4b": (576, 14, 14), "inception_5b": (1024, 7, 7)},
    },
    # Szegedy et al., arXiv:1602.07261, figures 3 and 9
    "inception-v4": {
        **{"conv1": (32, 149, 149), "conv2": (32, 147, 147), "conv3": (64, 147, 147), "stem1": (160, 73, 73)},
        **{"stem2": (192, 71, 71), "stem3": (384, 35, 35), "inception_a4": (384, 35, 35)},
        **{"reduction_a": (1024, 17, 17), "inception_b7": (1024, 17, 17), "reduction_b": (1536, 8, 8)},
        **{"inception_c3": (1536, 8, 8), "pool": (1536, 1, 1)},
    },
    # Chollet, arXiv:1610.02357, figure 5
    "xception": {"block4": (728, 19, 19), "block12": (728, 19, 19), "sepconv14_2_pointwise": (2048, 10, 10)},
    # He et al., arXiv:1512.03385, table 1
    "resnet34": {
        **{"conv1": (64, 112, 112), "conv2_3": (64, 56, 56), "conv3_4": (128, 28, 28)},
        **{"conv4_6": (256, 14, 14), "conv5_3": (512, 7, 7), "fc": (1000,)},
    },
    "resnet152": {
        **{"conv1": (64, 112, 112), "conv2_3": (256, 56, 56), "conv3_8": (512, 28, 28)},
        **{"conv4_36": (1024, 14, 14), "conv5_3": (2048, 7, 7), "fc": (1000,)},
    },
    # Long et al., arXiv:1411.4038: a score of 21 classes for every pixel
    "fcn8s": {"score": (21, 500, 500)},
    # Silver et al. 2016, Methods
    "alphago": {"conv1": (192, 19, 19), "conv12": (192, 19, 19), "conv13": (1, 19, 19), "softmax": (361,)},
    # Dosovitskiy et al., arXiv:2010.11929: 224 / 16 = 14
    "vit-b16-patches": {"patches": (768, 14, 14)},
    "course": {"pool1": (12, 16, 16), "pool2": (24, 8, 8)},
    "course-same": {"conv1": (32, 32, 32), "conv2": (64, 16, 16), "pool2": (64, 8, 8)},
    # Goodfellow et al. 2016, figure 9.6
    "edge-detection": {"difference": (1, 280, 319)},
}


def printed(value, like):
    """`value` with as many decimals as `like` has."""
    return f"{value:.{len(like.partition('.')[2])}f}"


def steps(name, training=False):
    return {step.path: step for step in NETWORKS[name].steps(training)}


@every_network
def test_parameters_are_the_published_ones(name):
    assert NETWORKS[name].parameters() == PARAMETERS[name]


def test_googlenets_heads_are_for_training_only():
    network = NETWORKS["googlenet"]
    assert network.parameters(training=False) == 6_998_552
    assert network.macs(training=True) > network.macs()
    asides = [layer.name for layer, _, _ in network.walk(training=True) if layer.name.startswith("auxiliary")]
    assert asides[:4] == ["auxiliary1.pool", "auxiliary1.conv", "auxiliary1.fc", "auxiliary1.classifier"]
    assert len(asides) == 8
    assert not any(layer.name.startswith("auxiliary") for layer, _, _ in network.walk())


@pytest.mark.parametrize("name", MACS)
def test_macs_are_the_published_ones(name):
    assert printed(NETWORKS[name].macs() / 1e9, MACS[name]) == MACS[name]


def test_googlenets_modules_have_the_papers_operations():
    # Szegedy et al., arXiv:1409.4842, table 1, column "ops", in millions, cut off or rounded. Two of its rows are not
    # what their own sizes give: 34 for conv1 (7x7x3 kernels do 118) and 54 for 5a (51; BVLC's weights have our sizes).
    ops = {"conv2": 360, "3a": 128, "3b": 304, "4a": 73, "4b": 88, "4c": 100, "4d": 119, "4e": 170, "5b": 71}
    found = {}
    for layer, before, _ in NETWORKS["googlenet"].walk():
        block = layer.name.removeprefix("inception_").partition(".")[0].removesuffix("_reduce")
        found[block] = found.get(block, 0) + layer.macs(before) / 1e6
    assert {block: millions for block, millions in ops.items() if abs(found[block] - millions) > 0.9} == {}
    assert (round(found["conv1"]), round(found["5a"]), round(found["classifier"])) == (118, 51, 1)


@pytest.mark.parametrize("blocks, block, billions", [
    ((2, 2, 2, 2), resnet.basic, 1.8),
    ((3, 4, 6, 3), resnet.basic, 3.6),
    ((3, 4, 6, 3), resnet.bottleneck, 3.8),
    ((3, 4, 23, 3), resnet.bottleneck, 7.6),
    ((3, 8, 36, 3), resnet.bottleneck, 11.3),
])  # fmt: skip
def test_resnets_with_the_papers_strides_have_the_papers_flops(blocks, block, billions):
    # He et al., arXiv:1512.03385, table 1, in 10^9 multiply-adds; its digits are sometimes cut off, sometimes rounded
    options = {"stride_in": "1x1"} if block is resnet.bottleneck else {}
    network = dataclasses.replace(NETWORKS["resnet50"], layers=resnet.layers(blocks, block, **options))
    assert billions - 0.05 < network.macs() / 1e9 < billions + 0.1


@pytest.mark.parametrize("name, billions", [("se-resnet50", 3.87), ("se-inception", 2.04)])
def test_squeeze_and_excitation_costs_what_the_paper_says(name, billions):
    # Hu et al., arXiv:1709.01507, table 2, counts the averages and the scaling too: one operation per element
    found = [step for step in NETWORKS[name].steps() if step.item.kind == "scale"]
    assert len(found) == {"se-resnet50": 16, "se-inception": 10}[name]
    more = 2 * sum(formulas.elements(step.after) for step in found)
    assert abs((NETWORKS[name].macs() + more) / 1e9 - billions) < 0.01


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_of_convolutions_and_linear_layers_are_the_published_ones(name):
    made = sum(formulas.elements(a) for layer, _, a in NETWORKS[name].walk() if layer.kind in ("conv", "linear"))
    assert printed(made / 1e6, ACTIVATIONS[name]) == ACTIVATIONS[name]


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_the_published_ones(name):
    found = steps(name, training=True)
    assert {path: found[path].after for path in SIZES[name]} == SIZES[name]


def test_variants_differ_where_they_should_only():
    assert {path: step.after for path, step in steps("alexnet-ungrouped").items()} == {
        path: step.after for path, step in steps("alexnet").items()
    }
    c, d = ([step.item for step in NETWORKS[name].steps()] for name in ("vgg16-c", "vgg16"))
    assert [item.name for item, other in zip(c, d, strict=True) if item != other] == ["conv3_3", "conv4_3", "conv5_3"]
    # Simonyan and Zisserman, table 1: weight layers
    layers = {name: sum(layer.kind in ("conv", "linear") for layer, _, _ in NETWORKS[name].walk()) for name in NETWORKS}
    assert [layers[name] for name in ("vgg11", "vgg13", "vgg16-c", "vgg16", "vgg19")] == [11, 13, 16, 16, 19]
    # a ResNet is called after its weight layers without projections
    for name in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"):
        assert name == f"resnet{layers[name] - sum('projection' in path for path in steps(name))}"
    # 13 convolutional layers, Silver et al. 2016, Methods
    assert layers["alphago"] == 13


def test_vgg16_activations_are_15_2_million_and_not_24():
    network = NETWORKS["vgg16"]
    by_hand = 224 * 224 * (3 + 64 + 64) + 112 * 112 * (64 + 128 + 128) + 56 * 56 * (128 + 3 * 256)
    by_hand += 28 * 28 * (256 + 3 * 512) + 14 * 14 * (512 + 3 * 512) + 7 * 7 * 512 + 4096 + 4096 + 1000
    assert network.activations() == by_hand == 15_237_608
    relus = sum(formulas.elements(after) for layer, _, after in network.walk() if getattr(layer, "relu", False))
    assert round((by_hand + relus) / 1e6, 1) == 28.8  # the note's other figure


def test_edge_detection_counts_both_ways():
    # Goodfellow et al. 2016, figure 9.6: 319 x 280 x 3 = 267,960 operations; two multiply-accumulates: 357,280 FLOPs
    macs = formulas.conv_macs(1, 1, 280, 319, 1, 1, 2)
    assert formulas.textbook_operations(macs, 319 * 280) == 267_960
    assert formulas.flops(macs) == 357_280


@every_network
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_modules_are_what_the_description_says(name, training):
    """On the meta device: shapes without arithmetic. Every layer and block puts out what its step says, in its order;
    torch counts the same parameters and FLOPs."""
    network = NETWORKS[name]
    model = models.build(network, device="meta").train(training)
    found = {step.path: step for step in network.steps(training)}
    assert sum(p.numel() for p in model.parameters()) == network.parameters()
    seen = []

    def record(path):
        return lambda module, given, y: seen.append((path, tuple(y.shape[1:])))

    for path in found:
        model.get_submodule(path).register_forward_hook(record(path))
    with FlopCounterMode(display=False) as counted:
        y = model(torch.empty(2, *network.input_shape, device="meta"))
    heads = [step for step in found.values() if step.item.kind == "head"]
    main = y[0] if heads else y
    assert main.shape == (2, *network.output_shape())
    assert len(heads) == (len(y) - 1 if heads else 0) == (2 if (name, training) == ("googlenet", True) else 0)
    shapes = {path: step.after for path, step in found.items() if step not in heads}
    # a Conv's step includes what follows it, which changes no shape; the output of a block with a crop comes after it
    assert {path: shape for path, shape in seen if path in shapes} == shapes
    assert [path for path, _ in seen if path in working(network, training)] == working(network, training)
    assert counted.get_total_flops() == 2 * network.macs(2, training)


@every_network
def test_modules_have_the_attributes_that_kernels_are_asked_for(name):
    network = NETWORKS[name]
    model = models.build(network, device="meta")
    for layer, before, after in network.walk(training=True):
        module = model.get_submodule(layer.name)
        if layer.kind == "linear":
            assert (module.in_features, module.out_features) == (formulas.elements(before), after[0])
            continue
        if isinstance(module, torch.nn.AdaptiveAvgPool2d):
            assert (module.output_size, layer.window) == (1, before[1:])
            continue
        assert pair(module.stride) == pair(layer.stride)
        assert pair(module.kernel_size) == pair(layer.kernel if layer.kind.startswith("conv") else layer.window)
        if module.padding == "same":
            assert pair(layer.padding) == tuple(size // 2 for size in pair(layer.kernel))
        else:
            assert pair(module.padding) == pair(layer.padding)
        if layer.kind in ("max", "avg"):
            assert module.ceil_mode == layer.ceil_mode
            assert layer.kind == "max" or module.count_include_pad == layer.count_include_pad
            continue
        assert (module.in_channels, module.out_channels) == (before[0], after[0])
        assert module.groups == getattr(layer, "groups", 1)
        assert (module.bias is not None) == layer.bias


def test_xceptions_pools_pad_as_tensorflow_does():
    # "same": ceil(size / stride) windows; of what is missing, the smaller half lies before
    pools = [
        (layer, before[1], after[1]) for layer, before, after in NETWORKS["xception"].walk() if layer.kind == "max"
    ]
    assert [size for _, size, _ in pools] == [147, 74, 37, 19]
    for layer, size, count in pools:
        missing = (-(-size // 2) - 1) * 2 + 3 - size
        assert (count, layer.padding) == (-(-size // 2), missing // 2)


def working(network, training):
    return [layer.name for layer, _, _ in network.walk(training)]


@every_network
def test_walk_yields_plain_layers_that_fit(name):
    for training in (False, True):
        for layer, before, after in NETWORKS[name].walk(training):
            assert layer.kind in ("conv", "conv_transpose", "max", "avg", "linear")
            assert layer.output_shape(before) == after
            if layer.kind == "conv":
                assert not layer.norm
                assert layer.padding != "same"
                assert layer.as_run(before, training) is layer


def test_a_normalised_convolution_runs_folded_or_apart():
    described = steps("resnet18")["conv1"]
    folded, apart = (next(NETWORKS["resnet18"].walk(training))[0] for training in (False, True))
    assert (folded.bias, folded.relu) == (True, True)
    assert (apart.bias, apart.relu) == (False, False)
    assert described.item.parameters(described.before) == 64 * 147 + 128
    assert described.item.problem((3, 224, 224), 1, "nchw")["activation"] == "relu"
    assert described.item.problem((3, 224, 224), 1, "nchw", "grad_weight")["activation"] == "none"
