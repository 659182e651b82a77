"""What convert leaves alone and says about it: hooks, include, exclude, fallback, untraceable forwards, the report."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastconv
from convert_models import (
    Effects,
    NoGrad,
    Standardized,
    assert_same,
    image,
    make,
    one_thread,  # noqa: F401 (a fixture)
)
from fastconv import conversion_report, convert, unconvert
from fastconv import nn as fnn
from fastconv._fold import ConvBatchNorm2d, ConvMaxPool2d

pytestmark = pytest.mark.filterwarnings("error:fastconv")  # no warning where none is due


def _hooked(register):
    conv = nn.Conv2d(3, 4, 3)
    getattr(conv, register)(lambda *args: None)
    return conv


LEFT = {
    "forward hook": (lambda: _hooked("register_forward_hook"), "has hooks .forward hooks"),
    "forward pre-hook": (lambda: _hooked("register_forward_pre_hook"), "has hooks .forward pre hooks"),
    "backward hook": (lambda: _hooked("register_full_backward_hook"), "has hooks .backward hooks"),
    "state-dict hook": (lambda: _hooked("register_state_dict_post_hook"), "has hooks .state dict hooks"),
    "weight_norm, parametrized": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)),
        "has parametrizations .weight",
    ),
    "spectral_norm, parametrized": (
        lambda: nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3)),
        "has parametrizations",
    ),
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
    assert isinstance(converted[0][2], ConvMaxPool2d), "a hook on the container does not see its inside"
    converted(image())
    assert seen[0] < 0, "the hook sees the convolution's output before the ReLU"


def test_a_device_or_dtype_that_comes_later():
    x = image().to(torch.complex64)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Complex modules")
        models = {
            f: convert(nn.Sequential(nn.Conv2d(3, 4, 3)), fallback=f).to(torch.complex64)
            for f in ("warn", "error", "silent")
        }
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
    ids=["all", "glob", "names", "class", "predicate", "not a name", "not a list", "both", "nothing"],
)
def test_include_and_exclude(options, replaced):
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3)), nn.Sequential(nn.Conv2d(4, 4, 3)), nn.MaxPool2d(3))
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


@pytest.mark.parametrize(
    "args, options, error, words",
    [
        ((3,), {}, TypeError, "model must be a torch.nn.Module, but got int"),
        ((nn.Conv2d,), {}, TypeError, "model must be a torch.nn.Module, but got type"),
        (
            (nn.ReLU(),),
            dict(fallback="foo"),
            ValueError,
            "fallback must be one of 'warn', 'error', 'silent', but got 'foo'",
        ),
        ((nn.ReLU(),), dict(fallback=None), TypeError, "fallback must be a str, but got NoneType"),
        ((nn.ReLU(),), dict(fuse=1), TypeError, "fuse must be a bool, but got int"),
        ((nn.ReLU(),), dict(inplace="no"), TypeError, "inplace must be a bool, but got str"),
        ((nn.ReLU(),), dict(include=nn.ReLU()), TypeError, "include takes module names.*ReLU"),
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
    assert names == ["0.0", "0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "0.9", "0.10", "1"]
    assert "folds '0.1' and ReLU in eval mode" in lines[2]
