"""convert and unconvert: the converted model computes what the original does, in every mode, and comes back whole."""

import copy
import inspect
import io
import pickle

import pytest
import torch
from torch import nn

from convert_models import (
    MODELS,
    BasicBlock,
    LeNet,
    MyConv,
    ResNet,
    Standardized,
    Subclasses,
    TrainOnly,
    TwoReLUBlock,
    assert_as_good,
    assert_same,
    image,
    make,
    one_thread,  # noqa: F401 (a fixture)
)
from fastconv import conversion_report, convert, unconvert
from fastconv import nn as fnn
from fastconv._fold import ConvBatchNorm2d, ConvMaxPool2d, FoldedBatchNorm2d, FusedActivation

pytestmark = pytest.mark.filterwarnings("error:fastconv")  # no warning where none is due


@pytest.mark.parametrize("fuse", [True, False], ids=["fused", "unfused"])
@pytest.mark.parametrize("name", MODELS)
def test_computes_what_the_original_does(name, fuse):
    original = make(name)
    converted = convert(original, fuse=fuse)
    assert isinstance(converted, type(original))
    assert_same(converted, copy.deepcopy(original))


@pytest.mark.parametrize("name", MODELS)
def test_state_dict_stays(name):
    original = make(name)
    converted = convert(original)
    ours, theirs = converted.state_dict(), original.state_dict()
    assert list(ours) == list(theirs) and all(torch.equal(ours[k], theirs[k]) for k in ours)
    buffer = io.BytesIO()
    torch.save(ours, buffer)
    buffer.seek(0)
    original.load_state_dict(torch.load(buffer, weights_only=True))
    converted.load_state_dict(theirs)
    assert [n for n, _ in converted.named_modules()] == [n for n, _ in original.named_modules()]


@pytest.mark.parametrize("name", MODELS)
def test_unconvert_restores_everything(name):
    original = make(name)
    back = unconvert(convert(original))
    assert repr(back) == repr(original)
    for (n, a), (m, b) in zip(back.named_modules(), original.named_modules(), strict=True):
        assert n == m and type(a) is type(b)
        assert a.__dict__.keys() == b.__dict__.keys(), "no trace of the conversion is left"
    x = image()
    assert torch.equal(back(x), original(x))
    assert repr(convert(back)) == repr(convert(original))


@pytest.mark.parametrize("name", MODELS)
def test_copies_of_a_converted_model(name):
    converted = convert(make(name)).eval()
    x, expected = image(), None
    buffer = io.BytesIO()
    torch.save(converted, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    expected = converted(x)
    for other in (copy.deepcopy(converted), pickle.loads(pickle.dumps(converted)), loaded):
        assert repr(other) == repr(converted)
        assert torch.equal(other(x), expected)
        assert repr(unconvert(other)) == repr(unconvert(converted))
        other.train()(x)  # the copy's statistics move, not the original's
        assert torch.equal(converted(x), expected)


@pytest.mark.parametrize("name", ["lenet", "vgg_bn", "resnet", "inception"])
def test_compiles_in_one_graph(name):
    converted = convert(make(name))
    x = image()
    for mode in (False, True):
        expected = copy.deepcopy(converted).train(mode)(x)
        compiled = torch.compile(converted.train(mode), fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), expected)


@pytest.mark.parametrize("name", ["lenet", "vgg_bn", "resnet"])
def test_bf16(name):
    original = make(name).bfloat16()
    converted, exact = convert(original), copy.deepcopy(original).double()
    for mode in (False, True):
        x = image(torch.bfloat16)
        results = [m.train(mode)(t).detach() for m, t in ((converted, x), (original, x), (exact, x.double()))]
        assert_as_good(*results, 4)


# --- what is replaced, and how it looks ---------------------------------------------------------------------


def test_returns_a_copy_unless_in_place():
    original = make("vgg")
    parameters = dict(original.named_parameters())
    converted = convert(original)
    assert type(original[0][0]) is nn.Conv2d and converted is not original
    assert not {id(p) for p in converted.parameters()} & {id(p) for p in original.parameters()}
    layer = original[0][0]
    assert convert(original, inplace=True) is original and original[0][0] is layer and isinstance(layer, fnn.ConvReLU2d)
    assert all(parameters[n] is p for n, p in original.named_parameters())
    assert unconvert(original, inplace=True) is original and type(layer) is nn.Conv2d


def test_sequential_neighbours_are_fused_and_indices_stay():
    model = convert(make("vgg"))
    kinds = [type(m) for m in model[0]]
    pair = [fnn.ConvReLU2d, FusedActivation]
    pooled = [ConvMaxPool2d, FusedActivation, FusedActivation]
    assert kinds == [*pair, *pooled, *pooled]
    assert isinstance(model[0][1], nn.Identity)
    assert "ReLU, done by 0.0" in repr(model)


def test_the_last_layer_without_relu_is_not_fused():
    model = convert(nn.Sequential(nn.ReLU(), nn.Conv2d(3, 4, 3), nn.CELU(), nn.Conv2d(4, 4, 3)))
    assert [type(m) for m in model] == [nn.ReLU, fnn.Conv2d, nn.CELU, fnn.Conv2d]


def test_fuse_false_replaces_only():
    model = convert(make("vgg_bn"), fuse=False)
    assert [type(m) for m in model[0]][:3] == [fnn.Conv2d, nn.BatchNorm2d, nn.ReLU]


def test_functional_relu_leaves_the_users_class():
    model = convert(make("lenet"))
    assert (
        isinstance(model, LeNet) and isinstance(model.conv1, ConvMaxPool2d) and isinstance(model.conv2, fnn.ConvReLU2d)
    )
    assert "relu" not in inspect.getsource(type(model).forward)
    assert type(unconvert(model)) is LeNet


def test_a_shared_relu_module_is_taken_out_where_it_follows_a_convolution():
    model = convert(make("resnet"))
    for block in model.layers:
        assert isinstance(block, BasicBlock) and isinstance(block.relu, FusedActivation)
        assert inspect.getsource(type(block).forward).count("relu(") == 1  # the other one followed the sum
        assert isinstance(block.conv1, ConvBatchNorm2d) and isinstance(block.bn1, FoldedBatchNorm2d)
    assert type(model) is ResNet


def test_relu_modules_of_their_own_leave_forward_alone():
    model = convert(make("resnet, two relus"))
    for block in model.layers:
        assert isinstance(block.relu, nn.Identity) and "relu2" not in inspect.getsource(type(block).forward)
    model = convert(make("resnet, two relus"), exclude="*.relu2")
    for block in model.layers:
        assert type(block) is TwoReLUBlock and isinstance(block.relu, nn.Identity) and type(block.relu2) is nn.ReLU


def test_one_relu_object_in_many_slots_of_a_sequential():
    relu = nn.ReLU()
    original = nn.Sequential(nn.Conv2d(3, 4, 3), relu, nn.Conv2d(4, 4, 3), relu, nn.MaxPool2d(2), relu)
    model = convert(original)
    assert [isinstance(m, nn.Identity) for m in model] == [False, True, False, True, True, False]
    assert type(model[5]) is nn.ReLU
    assert_same(model, original)
    back = unconvert(model)
    assert back[1] is back[3] is back[5] and type(back[1]) is nn.ReLU


def test_shared_modules_stay_shared():
    model = convert(make("shared"))
    assert model.once is model.again and type(model.once) is fnn.Conv2d
    assert type(model.both) is fnn.ConvReLU2d
    assert "follows only some" in conversion_report(model)


def test_an_output_with_other_users_is_not_fused():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.relu = nn.Conv2d(3, 4, 3), nn.ReLU()

        def forward(self, x):
            y = self.conv(x)
            return self.relu(y) + y

    assert type(convert(Two()).conv) is fnn.Conv2d
    assert type(convert(TrainOnly()).conv) is fnn.Conv2d


def test_subclasses():
    torch.manual_seed(7)
    original = Subclasses()
    with pytest.warns(UserWarning, match="'theirs': Standardized overrides forward"):
        model = convert(original)
    assert isinstance(model.mine, MyConv) and isinstance(model.mine, fnn.Conv2d) and model.mine.note == "kept"
    assert not isinstance(model.mine, fnn.ConvReLU2d), "doubled() comes before the ReLU"
    assert type(model.theirs) is Standardized
    assert_same(model, original)
    assert torch.equal(pickle.loads(pickle.dumps(model))(image()), model(image()))
    assert type(unconvert(model).mine) is MyConv


def test_a_subclass_is_fused_too():
    model = convert(nn.Sequential(MyConv(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), MyConv(4, 4, 3), nn.ReLU()))
    assert isinstance(model[0], MyConv) and isinstance(model[0], ConvBatchNorm2d)
    assert isinstance(model[3], MyConv) and isinstance(model[3], fnn.ConvReLU2d)
    assert_same(pickle.loads(pickle.dumps(model)), unconvert(model))


def test_layers_carry_everything_over():
    original = nn.Sequential(nn.Conv2d(3, 4, 3, padding_mode="circular", padding=1), nn.ReLU())
    original[0].tag = {"a": 1}
    original[0].weight.requires_grad_(False)
    original[0].eval()
    model = convert(original)
    assert model[0].tag == {"a": 1} and not model[0].weight.requires_grad and model[0].bias.requires_grad
    assert not model[0].training and model[1].training
    assert_same(model, original)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_mode(mode):
    original = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode=mode), nn.BatchNorm2d(4), nn.ReLU())
    assert_same(convert(original), original)


def test_a_single_layer_is_a_model():
    assert type(convert(nn.Conv2d(3, 4, 3))) is fnn.Conv2d
    assert type(convert(nn.MaxPool2d(2))) is fnn.MaxPool2d
    assert type(convert(nn.ReLU())) is nn.ReLU


def test_converting_twice():
    once = convert(make("resnet"))
    assert_same(convert(once), make("resnet"))
    later = convert(convert(make("vgg_bn"), fuse=False))
    assert isinstance(later[0][0], ConvBatchNorm2d)
    assert_same(later, make("vgg_bn"))


def test_hand_written_layers():
    model = nn.Sequential(fnn.Conv2d(3, 4, 3, algorithm="direct"), nn.ReLU(), fnn.MaxPool2d(3))
    fused = convert(model)
    assert type(fused[0]) is fnn.ConvReLU2d and fused[0].algorithm == "direct"
    back = unconvert(fused)
    assert [type(m) for m in back] == [nn.Conv2d, nn.ReLU, nn.MaxPool2d]
    with pytest.warns(UserWarning, match="'0' .ConvReLU2d."):
        assert type(unconvert(nn.Sequential(fnn.ConvReLU2d(3, 4, 3)))[0]) is fnn.ConvReLU2d
