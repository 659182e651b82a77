"""convert and unconvert: the converted model computes what the original does, in every mode, and comes back whole."""

import copy
import inspect
import io
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastconv
from convert_models import (
    BasicBlock,
    ConvBNReLU,
    Effects,
    Flagged,
    FunctionalBlock,
    Inception,
    LeNet,
    Methods,
    MyConv,
    NoGrad,
    ResNet,
    Scaled,
    Shared,
    Standardized,
    Subclasses,
    TrainOnly,
    TwoReLUBlock,
    alexnet,
    randomized,
    vgg,
)
from fastconv import convert, conversion_report, unconvert
from fastconv import nn as fnn
from fastconv._fold import ConvBatchNorm2d, FoldedBatchNorm2d, FusedReLU

SIZE = (2, 3, 12, 12)
MODELS = {
    "lenet": LeNet,
    "alexnet": lambda: _initialized(alexnet()),
    "vgg": vgg,
    "vgg_bn": lambda: vgg(norm=True),
    "resnet": ResNet,
    "resnet, functional": lambda: ResNet(FunctionalBlock),
    "resnet, two relus": lambda: ResNet(TwoReLUBlock),
    "inception": Inception,
    "inception, containers": lambda: Inception(ConvBNReLU),
    "methods": Methods,
    "shared": Shared,
    "flagged": Flagged,
    "effects": Effects,
    "scaled": Scaled,
    "train only": TrainOnly,
}
pytestmark = pytest.mark.filterwarnings("error:fastconv")  # no warning where none is due


@pytest.fixture(autouse=True)
def _one_thread():
    """Networks this small only wait for each other's threads: on two busy cores four times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _initialized(model):
    model(torch.ones(SIZE))
    return model


def make(name):
    torch.manual_seed(7)
    return randomized(MODELS[name]())


def image(dtype=torch.float32, seed=5):
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_as_good(ours, theirs, exact, roundings):
    """Error against float64 at most twice torch's own, plus some roundings of the largest value."""
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype and not ours.isnan().any()
    floor = roundings * torch.finfo(ours.dtype).eps * exact.abs().max().item()
    error, allowed = ((t.double() - exact).abs().max().item() for t in (ours, theirs))
    assert error <= 2 * allowed + floor, f"error {error:.3g}, torch's {allowed:.3g}, floor {floor:.3g}"


def run(model, x):
    """Output and all gradients of one forward and backward pass."""
    model.zero_grad()
    x = x.clone().requires_grad_()
    output = model(x)
    (output * torch.linspace(-1, 1, output.numel(), dtype=output.dtype).reshape(output.shape)).sum().backward()
    return [output.detach(), x.grad, *(p.grad for p in model.parameters() if p.grad is not None)]


def assert_same(converted, original):
    """The same output and gradients in eval mode, then in train mode, then the same running statistics."""
    exact = copy.deepcopy(original).double()
    for mode in (False, True):
        x = image()
        results = [run(m.train(mode), t) for m, t in ((converted, x), (original, x), (exact, x.double()))]
        for i, (ours, theirs, reference) in enumerate(zip(*results, strict=True)):
            # The gradient of a folded gamma is a difference of larger sums, over the filter and over the bias: its
            # error was seen at 30 roundings of the result.
            assert_as_good(ours, theirs, reference, 8 if i == 0 else 64)
    for (name, ours), theirs in zip(converted.state_dict().items(), original.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)


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
    pair = [fnn.ConvReLU2d, FusedReLU]
    assert kinds == [*pair, *pair, fnn.MaxPool2d, *pair, fnn.MaxPool2d]
    assert isinstance(model[0][1], nn.Identity)
    assert "ReLU, done by 0.0" in repr(model)


def test_the_last_layer_without_relu_is_not_fused():
    model = convert(nn.Sequential(nn.ReLU(), nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.Conv2d(4, 4, 3)))
    assert [type(m) for m in model] == [nn.ReLU, fnn.Conv2d, nn.ReLU6, fnn.Conv2d]


def test_fuse_false_replaces_only():
    model = convert(make("vgg_bn"), fuse=False)
    assert [type(m) for m in model[0]][:3] == [fnn.Conv2d, nn.BatchNorm2d, nn.ReLU]


def test_functional_relu_leaves_the_users_class():
    model = convert(make("lenet"))
    assert isinstance(model, LeNet) and isinstance(model.conv1, fnn.ConvReLU2d) and isinstance(model.conv2, fnn.ConvReLU2d)
    assert "relu" not in inspect.getsource(type(model).forward)
    assert type(unconvert(model)) is LeNet


def test_a_shared_relu_module_is_taken_out_where_it_follows_a_convolution():
    model = convert(make("resnet"))
    for block in model.layers:
        assert isinstance(block, BasicBlock) and type(block.relu) is nn.ReLU
        assert inspect.getsource(type(block).forward).count("relu(") == 1
        assert isinstance(block.conv1, ConvBatchNorm2d) and isinstance(block.bn1, FoldedBatchNorm2d)
    assert type(model) is ResNet


def test_relu_modules_of_their_own_leave_forward_alone():
    model = convert(make("resnet, two relus"))
    for block in model.layers:
        assert type(block) is TwoReLUBlock and isinstance(block.relu, nn.Identity) and type(block.relu2) is nn.ReLU


def test_one_relu_object_in_many_slots_of_a_sequential():
    relu = nn.ReLU()
    original = nn.Sequential(nn.Conv2d(3, 4, 3), relu, nn.Conv2d(4, 4, 3), relu, nn.MaxPool2d(2), relu)
    model = convert(original)
    assert [isinstance(m, nn.Identity) for m in model] == [False, True, False, True, False, False]
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
    model = nn.Sequential(fnn.Conv2d(3, 4, 3, algorithm="direct"), nn.ReLU(), fnn.MaxPool2d(2))
    fused = convert(model)
    assert type(fused[0]) is fnn.ConvReLU2d and fused[0].algorithm == "direct"
    back = unconvert(fused)
    assert [type(m) for m in back] == [nn.Conv2d, nn.ReLU, nn.MaxPool2d]
    with pytest.warns(UserWarning, match="'0' .ConvReLU2d."):
        assert type(unconvert(nn.Sequential(fnn.ConvReLU2d(3, 4, 3)))[0]) is fnn.ConvReLU2d


# --- what is left alone, and the reason ---------------------------------------------------------------------


def _hooked(register):
    conv = nn.Conv2d(3, 4, 3)
    getattr(conv, register)(lambda *args: None)
    return conv


LEFT = {
    "forward hook": (lambda: _hooked("register_forward_hook"), "has hooks .forward hooks"),
    "forward pre-hook": (lambda: _hooked("register_forward_pre_hook"), "has hooks .forward pre hooks"),
    "backward hook": (lambda: _hooked("register_full_backward_hook"), "has hooks .backward hooks"),
    "state-dict hook": (lambda: _hooked("register_state_dict_post_hook"), "has hooks .state dict hooks"),
    "weight_norm, parametrized": (lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), "has parametrizations .weight"),
    "spectral_norm, parametrized": (lambda: nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3)), "has parametrizations"),
    "spectral_norm, hooks": (lambda: nn.utils.spectral_norm(nn.Conv2d(3, 4, 3)), "recomputed by SpectralNorm"),
    "lazy": (lambda: nn.LazyConv2d(4, 3), "is lazy"),
    "complex": (lambda: nn.Conv2d(3, 4, 3, dtype=torch.complex64), "no convolution kernel takes torch.complex64"),
    "overrides forward": (lambda: Standardized(3, 4, 3), "Standardized overrides forward"),
    "patched": (lambda: _patched(nn.Conv2d(3, 4, 3)), "has forward patched"),
}


def _patched(conv):
    conv.forward = lambda x: x
    return conv


@pytest.mark.filterwarnings("ignore:Complex modules", "ignore:.*spectral_norm.*deprecated", "ignore:Lazy modules")
@pytest.mark.parametrize("name", LEFT)
def test_left_alone_with_the_reason(name):
    make_layer, reason = LEFT[name]
    layer = make_layer()
    model = nn.Sequential(layer, nn.ReLU())
    with pytest.warns(UserWarning, match=f"left to torch: '0': .*{reason}"):
        converted = convert(model, inplace=True)
    assert converted[0] is layer and not isinstance(layer, fnn.Conv2d) and type(converted[1]) is nn.ReLU
    line = next(line for line in conversion_report(converted).splitlines() if line.startswith("0 "))
    assert "left alone" in line
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert(model, fallback="silent", inplace=True)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), layer)
    with pytest.raises(RuntimeError, match=f"'1': .*{reason}"):
        convert(plain, fallback="error", inplace=True)
    assert type(plain[0]) is nn.Conv2d, "changed wholly or not at all"


def test_one_warning_per_reason():
    layers = [_hooked("register_forward_hook") for _ in range(3)]
    with pytest.warns(UserWarning) as caught:
        convert(nn.Sequential(*layers, Standardized(3, 4, 3)))
    assert len(caught) == 2 and "'0', '1', '2'" in str(caught[0].message)


def test_hooks_on_partners_and_containers_see_what_they_saw():
    model = make("vgg")
    seen = []
    model[0][1].register_forward_pre_hook(lambda module, args: seen.append(args[0].min().item()))
    model[0].register_forward_hook(lambda module, args, output: None)
    converted = convert(model)
    assert type(converted[0][0]) is fnn.Conv2d and type(converted[0][1]) is nn.ReLU
    assert isinstance(converted[0][2], fnn.ConvReLU2d), "a hook on the container does not see its inside"
    converted(image())
    assert seen[0] < 0, "the hook sees the convolution's output before the ReLU"


def test_a_device_or_dtype_that_comes_later():
    x = image().to(torch.complex64)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Complex modules")
        models = {f: convert(nn.Sequential(nn.Conv2d(3, 4, 3)), fallback=f).to(torch.complex64) for f in ("warn", "error", "silent")}
    with pytest.raises(NotImplementedError):
        models["error"](x)
    expected = F.conv2d(x, models["silent"][0].weight, models["silent"][0].bias)
    assert torch.equal(models["silent"](x), expected)
    fastconv._support._said.clear()
    with pytest.warns(RuntimeWarning, match="no convolution kernel takes torch.complex64 on 'cpu'"):
        models["warn"](x)
    models["warn"](x)  # once per reason: pytestmark makes a second warning an error


@pytest.mark.parametrize(
    "options, replaced",
    [
        (dict(), "012"),
        (dict(include="0*"), "0"),
        (dict(include=["0.0", "2"]), "02"),
        (dict(include=nn.MaxPool2d), "2"),
        (dict(include=lambda name, module: getattr(module, "out_channels", 0) == 4), "01"),
        (dict(exclude="0"), "12"),
        (dict(exclude=[nn.MaxPool2d, "1.0"]), "0"),
        (dict(include=nn.Conv2d, exclude="1*"), "0"),
        (dict(include=[]), ""),
    ],
    ids=str,
)
def test_include_and_exclude(options, replaced):
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3)), nn.Sequential(nn.Conv2d(4, 4, 3)), nn.MaxPool2d(2))
    converted = convert(model, **options)
    layers = (converted[0][0], converted[1][0], converted[2])
    assert "".join(str(i) for i, m in enumerate(layers) if type(m).__module__ == "fastconv.nn") == replaced
    assert conversion_report(converted).count("left alone") == 3 - len(replaced)


def test_exclude_keeps_partners():
    model = convert(make("vgg_bn"), exclude=nn.ReLU)
    assert isinstance(model[0][0], ConvBatchNorm2d) and type(model[0][2]) is nn.ReLU
    assert_same(model, make("vgg_bn"))
    model = convert(make("vgg_bn"), exclude=nn.BatchNorm2d)
    assert [type(m) for m in model[0]][:3] == [fnn.Conv2d, nn.BatchNorm2d, nn.ReLU]


def test_a_pattern_without_a_match_is_told():
    with pytest.warns(UserWarning, match="'layer9' matches no module"):
        convert(nn.Sequential(nn.Conv2d(3, 4, 3)), exclude="layer9")


def test_untraceable_forward_fuses_only_what_is_called_as_a_whole():
    model = convert(make("flagged"))
    assert type(model.stem) is fnn.Conv2d and type(model.act) is nn.ReLU
    assert isinstance(model.body[0], fnn.ConvReLU2d)
    assert type(model.head[0]) is fnn.Conv2d, "forward also calls head[0] alone"
    assert "cannot be traced" in conversion_report(model)
    x = image()
    torch.testing.assert_close(model(x, features=True), make("flagged")(x, features=True))


@pytest.mark.parametrize("model, reason", [(Effects, "writes the attribute 'seen'"), (NoGrad, "has a with statement")])
def test_a_forward_with_effects_is_kept(model, reason):
    converted = convert(model())
    assert type(converted) is model and type(converted.conv) is fnn.Conv2d
    assert reason in conversion_report(converted)
    assert converted(image()).requires_grad == (model is Effects)
    assert hasattr(converted, "seen") == (model is Effects)


def test_a_regenerated_forward_notices_a_changed_attribute():
    model = convert(make("scaled"))
    assert isinstance(model.conv, fnn.ConvReLU2d)
    model.scale = 3.0
    with pytest.raises(RuntimeError, match="traced with .scale. = .2.0.; convert the model again"):
        model(image())
    assert_same(convert(unconvert(model)), unconvert(model))


def test_tracing_leaves_no_mark_on_the_model():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.relu = nn.Conv2d(3, 4, 3), nn.ReLU()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return self.relu(self.conv(x)) + torch.rand(1)

    model = Counting()
    state = torch.get_rng_state()
    converted = convert(model, inplace=True)
    assert isinstance(converted.conv, fnn.ConvReLU2d)
    assert model.calls == 0 and torch.equal(state, torch.get_rng_state())


# --- BatchNorm ----------------------------------------------------------------------------------------------


def test_batch_norm_keeps_its_place_and_trains():
    original, model = make("vgg_bn"), convert(make("vgg_bn"))
    assert isinstance(model[0][1], nn.BatchNorm2d) and isinstance(model[0][2], nn.Identity)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (original, model)]
    for step in range(3):
        for m, optimizer in zip((original, model), optimizers, strict=True):
            m.train()
            optimizer.zero_grad()
            F.cross_entropy(m(image(seed=step)), torch.tensor([1, 2])).backward()
            optimizer.step()
        for a, b in zip(model.state_dict().values(), original.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        x = image(seed=99)
        torch.testing.assert_close(model.eval()(x), original.eval()(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("conv_trains", [True, False])
@pytest.mark.parametrize("norm_trains", [True, False])
def test_the_batch_norms_own_mode_decides(conv_trains, norm_trains):
    original = randomized(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    model = convert(original)
    for m in (original, model):
        m[0].train(conv_trains)
        m[1].train(norm_trains)
    x = image()
    torch.testing.assert_close(model(x), original(x))
    torch.testing.assert_close(model[1].running_var, original[1].running_var)


CHANGES = {
    "data": lambda m: m[0].weight.data.mul_(2),
    "data rebound": lambda m: setattr(m[0].weight, "data", m[0].weight.data * 2),
    "numpy": lambda m: m[0].weight.detach().numpy().__imul__(2),
    "bias, numpy": lambda m: m[0].bias.detach().numpy().__iadd__(2),
    "gamma": lambda m: m[1].weight.data.mul_(2),
    "beta": lambda m: m[1].bias.data.add_(2),
    "running mean": lambda m: m[1].running_mean.numpy().__iadd__(2),
    "running var": lambda m: m[1].running_var.numpy().__imul__(4),
    "eps": lambda m: setattr(m[1], "eps", 1.0),
    "parameter replaced": lambda m: setattr(m[0], "weight", nn.Parameter(m[0].weight.detach() * 2)),
    "state_dict": lambda m: m.load_state_dict({k: 2 * v for k, v in m.state_dict().items()}),
    "optimizer": lambda m: _step(m, torch.optim.Adam(m.parameters(), lr=0.1)),
    "fused optimizer": lambda m: _step(m, torch.optim.Adam(m.parameters(), lr=0.1, fused=True)),
    "no statistics": lambda m: (setattr(m[1], "running_mean", None), setattr(m[1], "running_var", None)),
    "dtype": lambda m: m.double().float(),
}


def _step(model, optimizer):
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("width", [4, 64], ids=["small", "kept"])
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_changes_between_eval_calls_are_seen(change, grad, width):
    original = randomized(nn.Sequential(nn.Conv2d(3, width, 5), nn.BatchNorm2d(width), nn.ReLU())).eval()
    model = convert(original)
    x = image()
    with torch.set_grad_enabled(grad):
        for _ in range(3):  # the kernels keep what they derive from a filter from its second sight on
            torch.testing.assert_close(model(x), original(x))
        for m in (original, model):
            change(m)
        torch.testing.assert_close(model(x), original(x))


def test_a_filter_is_folded_once_while_nothing_changes(monkeypatch):
    from fastconv import _fold

    count = []
    fold = _fold.folded
    monkeypatch.setattr(_fold, "folded", lambda *args: count.append(1) or fold(*args))
    original = randomized(nn.Sequential(nn.Conv2d(3, 64, 5), nn.BatchNorm2d(64))).eval()
    model, x = convert(original), image()
    with torch.inference_mode():
        assert torch.equal(model(x), model(x))
    assert len(count) == 1
    with torch.no_grad():
        twin = copy.deepcopy(model)
        twin[1].weight.mul_(2)
        torch.testing.assert_close(model(x), original(x))
        assert len(count) == 1
        torch.testing.assert_close(twin(x), original(x) * 2 - original[1].bias[:, None, None])
    model.requires_grad_(False)
    x.requires_grad_()
    model(x).sum().backward()  # the kept filter was made in inference mode, and is saved for backward here
    y = x.detach().clone().requires_grad_()
    original(y).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    assert len(count) == 2
    model.train()(x)
    assert model[0] not in _fold._kept


def test_folded_eval_mode_is_differentiable_twice():
    conv = nn.Conv2d(2, 3, 2)
    model = convert(randomized(nn.Sequential(conv, nn.BatchNorm2d(3)))).double().eval()
    x = torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    parameters = dict(model.named_parameters())

    def function(x, *values):
        return torch.func.functional_call(model, dict(zip(parameters, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(function, (x, *parameters.values()))
    assert torch.autograd.gradgradcheck(function, (x, *parameters.values()))


def test_batch_norm_that_cannot_be_folded():
    batch_statistics = nn.BatchNorm2d(4, track_running_stats=False)
    hooked = nn.BatchNorm2d(4)
    hooked.register_forward_hook(lambda *args: None)
    for norm, reason in ((batch_statistics, "keeps no running statistics"), (hooked, "has hooks"), (nn.InstanceNorm2d(4), None)):
        original = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU())
        model = convert(original)
        assert type(model[0]) is fnn.Conv2d and type(model[2]) is nn.ReLU
        assert reason is None or reason in conversion_report(model)
        assert_same(model, original)


def test_one_batch_norm_after_two_convolutions_is_not_folded():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.norm = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x):
            return (self.norm(self.a(x)) + self.norm(self.b(x))).mean((2, 3))

    original = randomized(Heads())
    model = convert(original)
    assert type(model.a) is type(model.b) is fnn.Conv2d and type(model.norm) is nn.BatchNorm2d
    assert_same(model, original)


def test_affine_false_and_errors_of_a_folded_pair():
    original = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False))
    original[1].running_mean.normal_()
    model = convert(original)
    assert isinstance(model[0], ConvBatchNorm2d)
    assert_same(model, original)
    with pytest.raises(ValueError, match="expected 4D input"):
        model.eval()(image()[0])


# --- arguments and report ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args, options, error, words",
    [
        ((3,), {}, TypeError, "model must be a torch.nn.Module, but got int"),
        ((nn.Conv2d,), {}, TypeError, "model must be a torch.nn.Module, but got type"),
        ((nn.ReLU(),), dict(fallback="foo"), ValueError, "fallback must be one of 'warn', 'error', 'silent', but got 'foo'"),
        ((nn.ReLU(),), dict(fallback=None), TypeError, "fallback must be a str, but got NoneType"),
        ((nn.ReLU(),), dict(fuse=1), TypeError, "fuse must be a bool, but got int"),
        ((nn.ReLU(),), dict(inplace="no"), TypeError, "inplace must be a bool, but got str"),
        ((nn.ReLU(),), dict(include=3), TypeError, "include takes module names"),
        ((nn.ReLU(),), dict(exclude=[int]), TypeError, "exclude takes module names.*<class 'int'>"),
    ],
)
def test_bad_arguments(args, options, error, words):
    with pytest.raises(error, match=words):
        convert(*args, **options)


def test_bad_arguments_of_the_others():
    with pytest.raises(TypeError, match="must be a torch.nn.Module"):
        unconvert("model")
    with pytest.raises(TypeError, match="must be a torch.nn.Module"):
        conversion_report(None)
    with pytest.raises(ValueError, match="was not returned by fastconv.convert"):
        conversion_report(nn.ReLU())


def test_report_is_a_table_in_the_models_order():
    lines = conversion_report(convert(make("vgg_bn"))).splitlines()
    assert lines[0].split() == ["layer", "was", "is", "note"] and set(lines[1]) == {"-", " "}
    names = [line.split()[0] for line in lines[2:]]
    assert names == ["0.0", "0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "0.9", "0.10"]
    assert "folds '0.1' and ReLU in eval mode" in lines[2]
