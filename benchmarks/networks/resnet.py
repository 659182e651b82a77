"""ResNet: K. He, X. Zhang, S. Ren, J. Sun, "Deep residual learning for image recognition", CVPR 2016,
arXiv:1512.03385, table 1 and figure 5; projection shortcuts where sizes change (option B). SE-ResNet: J. Hu et al.,
"Squeeze-and-excitation networks", CVPR 2018, arXiv:1709.01507, figure 3 and table 1."""

from ..blocks import Network, residual
from ..layers import Conv, GlobalAvgPool, Linear, MaxPool
from .squeeze import squeeze_excite

WIDTHS = (64, 128, 256, 512)


def _conv(name, k, kernel, stride=1, relu=True):
    return Conv(name, k, kernel, stride, kernel // 2, bias=False, norm=True, relu=relu)


def basic(name, c, width, stride):
    """Two 3x3 convolutions."""
    body = _conv("conv1", width, 3, stride), _conv("conv2", width, 3, relu=False)
    return residual(name, body, _shortcut(c, width, stride)), width


def bottleneck(name, c, width, stride, excited=False, stride_in="3x3"):
    """1x1, 3x3, 1x1, the last with four times the filters. `stride_in`: the convolution that has the stride."""
    k = 4 * width
    body = [
        _conv("conv1", width, 1, stride if stride_in == "1x1" else 1),
        _conv("conv2", width, 3, stride if stride_in == "3x3" else 1),
        _conv("conv3", k, 1, relu=False),
    ]
    body += [squeeze_excite("se", k)] if excited else []
    return residual(name, tuple(body), _shortcut(c, k, stride)), k


def _shortcut(c, k, stride):
    return () if (c, stride) == (k, 1) else _conv("projection", k, 1, stride, relu=False)


def layers(blocks, block, **options):
    """All of a ResNet whose stages have so many `blocks`."""
    found, c = [], 64
    for stage, (count, width) in enumerate(zip(blocks, WIDTHS, strict=True), 2):
        for number in range(1, count + 1):
            stride = 2 if number == 1 and stage > 2 else 1
            made, c = block(f"conv{stage}_{number}", c, width, stride, **options)
            found.append(made)
    return (
        _conv("conv1", 64, 7, 2),
        MaxPool("pool1", 3, stride=2, padding=1),
        *found,
        GlobalAvgPool("pool"),
        Linear("fc", 1000),
    )


def _resnet(depth, blocks, block, paper, *notes):
    return Network(
        name=f"resnet{depth}",
        title=f"ResNet-{depth}",
        source="He, Zhang, Ren, Sun, arXiv:1512.03385, table 1",
        input_shape=(3, 224, 224),
        layers=layers(blocks, block),
        notes=(*notes, f"The paper: {paper} billion FLOPs, a multiply-add counted once (table 1)."),
    )


_STRIDE = (
    "Variant: the stride is in the 3x3 convolution, as in torchvision; the paper has it in the 1x1 before, which saves "
    "0.23 billion MACs."
)
RESNET18 = _resnet(18, (2, 2, 2, 2), basic, "1.8")
RESNET34 = _resnet(34, (3, 4, 6, 3), basic, "3.6")
RESNET50 = _resnet(50, (3, 4, 6, 3), bottleneck, "3.8", _STRIDE)
RESNET101 = _resnet(101, (3, 4, 23, 3), bottleneck, "7.6", _STRIDE)
RESNET152 = _resnet(152, (3, 8, 36, 3), bottleneck, "11.3", _STRIDE)

SE_RESNET50 = Network(
    name="se-resnet50",
    title="SE-ResNet-50",
    source="Hu et al., arXiv:1709.01507, table 1",
    input_shape=(3, 224, 224),
    layers=layers((3, 4, 6, 3), bottleneck, excited=True, stride_in="1x1"),
    notes=(
        "Variant: strides in the 1x1 convolutions, as in the papers: 3.87 GFLOPs in table 2, a multiply-add counted "
        "once. Reduction 16.",
    ),
)
