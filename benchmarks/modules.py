"""The torch modules that join a network's layers: paths side by side, auxiliary heads, crops. Plain torch, so that
`fastconv.convert` can trace them."""

import torch


class _Paths(torch.nn.Module):
    """Paths that all take the same input. Their modules are this one's children under their own names; an empty path is
    the identity."""

    def __init__(self, paths):
        super().__init__()
        self.paths = [list(modules) for modules in paths]  # of names
        for modules in paths:
            for name, module in modules.items():
                if hasattr(self, name):
                    raise ValueError(f"two layers of a block are called {name}")
                self.add_module(name, module)

    def outputs(self, x):
        found = []
        for names in self.paths:
            y = x
            for name in names:
                y = getattr(self, name)(y)
            found.append(y)
        return found


class Concat(_Paths):
    """The paths' channels, one after the other."""

    def forward(self, x):
        return torch.cat(self.outputs(x), 1)


class Add(_Paths):
    """The sum of the paths, then ReLU if `relu`."""

    def __init__(self, paths, relu=False):
        super().__init__(paths)
        self.relu = torch.nn.ReLU(inplace=True) if relu else None

    def forward(self, x):
        first, *others = self.outputs(x)
        for other in others:
            first = first + other
        return first if self.relu is None else self.relu(first)


_BASIC = ("conv1", "conv1_bn", "conv1_relu", "conv2", "conv2_bn")
_BOTTLENECK = (*_BASIC, "conv2_relu", "conv3", "conv3_bn")
_PROJECTION = ("projection", "projection_bn")


class Residual(Add):
    """ResNet's block, basic or bottleneck, with squeeze-and-excitation or not, written out as torchvision does: where
    `fastconv.convert` sees the last convolution, the sum and the ReLU in one forward, they are one layer to it."""

    def __init__(self, paths):
        super().__init__(paths, relu=True)
        for name in (*_BOTTLENECK, "se", *_PROJECTION):
            if name not in self._modules:
                self.register_module(name, None)

    @staticmethod
    def fits(paths):
        """Whether the paths are such a block's, by the names of their layers."""
        if len(paths) != 2:
            return False
        body, shortcut = map(tuple, paths)
        plain = body[:-1] if body[-1:] == ("se",) else body
        return plain in (_BASIC, _BOTTLENECK) and shortcut in ((), _PROJECTION)

    def forward(self, x):
        y = self.conv1_relu(self.conv1_bn(self.conv1(x)))
        y = self.conv2_bn(self.conv2(y))
        if self.conv3 is not None:
            y = self.conv3_bn(self.conv3(self.conv2_relu(y)))
        if self.se is not None:
            y = self.se(y)
        if self.projection is not None:
            x = self.projection_bn(self.projection(x))
        y += x
        return self.relu(y)


class Scale(_Paths):
    """The first path times the others, which have one number for each channel, with or without a height and width."""

    def forward(self, x):
        first, *gates = self.outputs(x)
        for gate in gates:
            first = first * (gate[:, :, None, None] if gate.dim() == 2 else gate)
        return first


JOINS = {"concat": Concat, "scale": Scale}


class Trunk(torch.nn.Sequential):
    """A sequence with heads on its side. In training it returns (output, first head's, second head's, ...)."""

    def __init__(self, modules, heads):
        super().__init__(modules)
        self.heads = frozenset(heads)

    def forward(self, x):
        asides = []
        for name, module in self.named_children():
            if name not in self.heads:
                x = module(x)
            elif self.training:
                asides.append(module(x))
        return (x, *asides) if asides else x


class Bias(torch.nn.Module):
    """A trained number added to each element of an image: `bias` has an image's shape."""

    def __init__(self, shape, device="cpu"):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.empty(shape, device=device))

    def forward(self, x):
        return x + self.bias

    def extra_repr(self):
        return f"{tuple(self.bias.shape)}"


class Crop(torch.nn.Module):
    """`size` (height, width) of every map, `offset` rows and columns inside."""

    def __init__(self, size, offset):
        super().__init__()
        self.size, self.offset = size, offset

    def forward(self, x):
        (height, width), start = self.size, self.offset
        return x[:, :, start : start + height, start : start + width]

    def extra_repr(self):
        return f"{self.size}, offset={self.offset}"
