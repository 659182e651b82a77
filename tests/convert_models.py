"""Small networks, one for each way in which people write convolution, BatchNorm and ReLU, and how to compare them."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn


class LeNet(nn.Module):
    """Functional ReLUs and pooling layers."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5, padding=2)
        self.pool = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.mean = nn.AvgPool2d(2)
        self.fc = nn.Linear(16, 10)

    def forward(self, x):
        x = self.pool(F.relu(self.conv1(x)))
        x = self.mean(torch.relu(self.conv2(x)))
        return self.fc(torch.flatten(x, 1))


def vgg(norm=False):
    """VGG-like Sequential, with in-place ReLUs and optionally BatchNorm."""
    layers, channels = [], 3
    for width in (8, 8, "pool", 12, "pool"):
        if width == "pool":
            layers.append(nn.MaxPool2d(2, 2))
            continue
        layers.append(nn.Conv2d(channels, width, 3, padding=1, bias=not norm))
        layers += [nn.BatchNorm2d(width)] * norm
        layers.append(nn.ReLU(inplace=True))
        channels = width
    return nn.Sequential(nn.Sequential(*layers), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 10))


def alexnet():
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, 2, 2), nn.ReLU(True), nn.MaxPool2d(3, 2),
        nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.ReLU(True),
        nn.Flatten(), nn.LazyLinear(10), nn.ReLU(), nn.Linear(10, 10),
    )  # fmt: skip


class BasicBlock(nn.Module):
    """ResNet's block with one ReLU module for both places, only one of which follows a convolution."""

    def __init__(self, channels, width, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = None
        if stride != 1 or channels != width:
            self.downsample = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x):
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class FunctionalBlock(BasicBlock):
    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(out)) + identity)


class TwoReLUBlock(BasicBlock):
    """One ReLU module per place: nothing has to be rewritten."""

    def __init__(self, *args):
        super().__init__(*args)
        self.relu2 = nn.ReLU()

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu2(out + identity)


class ResNet(nn.Module):
    def __init__(self, block=BasicBlock):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.layers = nn.Sequential(block(8, 8), block(8, 12, 2))
        self.fc = nn.Linear(12, 10)

    def forward(self, x):
        return self.fc(self.layers(self.stem(x)).mean((2, 3)))


class ConvBNReLU(nn.Sequential):
    """torchvision's way: a container class of its own."""

    def __init__(self, channels, width, size, **options):
        super().__init__(nn.Conv2d(channels, width, size, bias=False, **options), nn.BatchNorm2d(width), nn.ReLU())


class BasicConv(nn.Module):
    """Inception's way: BatchNorm in the block, ReLU functional and in place."""

    def __init__(self, channels, width, size, **options):
        super().__init__()
        self.conv = nn.Conv2d(channels, width, size, bias=False, **options)
        self.bn = nn.BatchNorm2d(width, eps=0.001)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Inception(nn.Module):
    def __init__(self, unit=BasicConv):
        super().__init__()
        self.branch1 = unit(3, 4, 1)
        self.branch3 = nn.Sequential(unit(3, 4, 1), unit(4, 6, 3, padding=1))
        self.branch_pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), unit(3, 4, 1))
        self.fc = nn.Linear(14, 10)

    def forward(self, x):
        outs = []
        for branch in (self.branch1, self.branch3, self.branch_pool):
            outs.append(branch(x))
        return self.fc(torch.cat(outs, 1).mean((2, 3)))


class Methods(nn.Module):
    """ReLU as a tensor method, out of place and in place with the result thrown away."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

    def forward(self, x):
        x = self.conv1(x).relu()
        x = self.conv2(x)
        x.relu_()
        return x.mean((2, 3))


class MyConv(nn.Conv2d):
    """A subclass that overrides nothing of the forward, but is used by its own methods."""

    def __init__(self, *args):
        super().__init__(*args)
        self.note = "kept"

    def doubled(self, x):
        return 2 * self(x)


class Standardized(nn.Conv2d):
    """A subclass with a forward of its own."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Subclasses(nn.Module):
    def __init__(self):
        super().__init__()
        self.mine = MyConv(3, 4, 3)
        self.theirs = Standardized(4, 4, 3)

    def forward(self, x):
        return self.theirs(F.relu(self.mine.doubled(x)))


class Shared(nn.Module):
    """One convolution in two places, of which one has no ReLU; another one with a ReLU in both."""

    def __init__(self):
        super().__init__()
        self.once = nn.Conv2d(3, 3, 3, padding=1)
        self.again = self.once
        self.both = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        x = self.again(F.relu(self.once(x)))
        return torch.relu(self.both(F.relu(self.both(x)))).mean((2, 3))


class Flagged(nn.Module):
    """A forward that cannot be traced, over children that it only calls and one that it also looks into."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.act = nn.ReLU()
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU())
        self.head = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU())

    def forward(self, x, features=False):
        x = self.body(self.act(self.stem(x)))
        if features:
            return self.head[0](x)
        return self.head(x)


class Effects(nn.Module):
    """A functional ReLU in a forward that keeps something for later."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        x = F.relu(self.conv(x))
        self.seen = x.detach()
        return x.mean((2, 3))


class NoGrad(Effects):
    def forward(self, x):
        with torch.no_grad():
            return F.relu(self.conv(x))


class Scaled(Effects):
    """A forward that reads a plain attribute."""

    scale = 2.0

    def forward(self, x):
        return F.relu(self.conv(x)) * self.scale


class TrainOnly(nn.Module):
    """The convolution's output is used twice, but only in train mode."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 4, 3), nn.ReLU()

    def forward(self, x):
        y = self.conv(x)
        z = self.relu(y).mean((2, 3))
        return z + y.mean((2, 3)) if self.training else z


def randomized(model):
    """Statistics and affine parameters of BatchNorm as after training, so that folding is not the identity."""
    generator = torch.Generator().manual_seed(11)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            with torch.no_grad():
                module.running_mean.normal_(generator=generator)
                module.running_var.uniform_(0.3, 3, generator=generator)
                module.weight.normal_(generator=generator)
                module.bias.normal_(generator=generator)
    return model


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


@pytest.fixture(autouse=True)
def one_thread():
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


def assert_as_good(ours, theirs, exact, roundings, least=0.0):
    """Error against float64 at most twice torch's own, plus roundings of the largest value or `least`."""
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype and not ours.isnan().any()
    floor = max(roundings * torch.finfo(ours.dtype).eps * exact.abs().max().item(), least)
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
        # A bias before BatchNorm has no gradient: what is left are roundings of sums as large as the other gradients.
        least = 4 * torch.finfo(torch.float32).eps * max(t.abs().max().item() for t in results[2][1:])
        for i, (ours, theirs, reference) in enumerate(zip(*results, strict=True)):
            # The gradient of a folded gamma is a difference of larger sums, over the filter and over the bias: its
            # error was seen at 30 roundings of the result.
            assert_as_good(ours, theirs, reference, 8 if i == 0 else 64, 0.0 if i == 0 else least)
    for (name, ours), theirs in zip(converted.state_dict().items(), original.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)
