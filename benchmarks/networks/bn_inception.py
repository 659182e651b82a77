"""BN-Inception: S. Ioffe, C. Szegedy, "Batch normalization: accelerating deep network training by reducing internal
covariate shift", ICML 2015, arXiv:1502.03167, appendix, figure 5. With squeeze-and-excitation: J. Hu et al.,
"Squeeze-and-excitation networks", CVPR 2018, arXiv:1709.01507, figure 2 and table 2 (SE-BN-Inception)."""

from ..blocks import Network, concat
from ..layers import AvgPool, Conv, GlobalAvgPool, Linear, MaxPool
from .squeeze import squeeze_excite

# of figure 5: #1x1, #3x3 reduce, #3x3, double #3x3 reduce, double #3x3, the pool and its projection. Modules without
# 1x1 and projection have stride 2. Channels after each: 256, 320, 576, 576, 576, 608, 608, 1056, 1024, 1024 (the
# figure prints 576 after 4c and 4d and 1024 after 4e, which its own branches do not add up to).
MODULES = {
    "3a": (64, 64, 64, 64, 96, AvgPool, 32),
    "3b": (64, 64, 96, 64, 96, AvgPool, 64),
    "3c": (0, 128, 160, 64, 96, MaxPool, 0),
    "4a": (224, 64, 96, 96, 128, AvgPool, 128),
    "4b": (192, 96, 128, 96, 128, AvgPool, 128),
    "4c": (160, 128, 160, 128, 160, AvgPool, 128),
    "4d": (96, 128, 192, 160, 192, AvgPool, 128),
    "4e": (0, 128, 192, 192, 256, MaxPool, 0),
    "5a": (352, 192, 320, 160, 224, AvgPool, 128),
    "5b": (352, 192, 320, 192, 224, MaxPool, 128),
}


def _conv(name, k, kernel, stride=1, padding=0):
    return Conv(name, k, kernel, stride, padding, bias=False, norm=True, relu=True)


def _inception(name):
    one, reduce3, three, reduce_double, double, pool, projection = MODULES[name]
    stride = 1 if one else 2
    paths = (
        (_conv("3x3_reduce", reduce3, 1), _conv("3x3", three, 3, stride, 1)),
        (
            _conv("double_3x3_reduce", reduce_double, 1),
            _conv("double_3x3_1", double, 3, 1, 1),
            _conv("double_3x3_2", double, 3, stride, 1),
        ),
    )
    if not one:
        return concat(f"inception_{name}", *paths, pool("pool", 3, 2, ceil_mode=True))
    return concat(
        f"inception_{name}", _conv("1x1", one, 1), *paths, (pool("pool", 3, 1, 1), _conv("pool_proj", projection, 1))
    )


def _network(name, title, source, excited, *notes):
    modules, c = [], 192
    for module, (one, _, three, _, double, _, projection) in MODULES.items():
        modules.append(_inception(module))
        c = one + three + double + projection + (0 if one else c)  # modules of stride 2 let their input through, pooled
        if excited:
            modules.append(squeeze_excite(f"se_{module}", c))
    return Network(
        name=name,
        title=title,
        source=source,
        input_shape=(3, 224, 224),
        layers=(
            _conv("conv1", 64, 7, 2, 3),
            MaxPool("pool1", 3, 2, ceil_mode=True),
            _conv("conv2_reduce", 64, 1),
            _conv("conv2", 192, 3, 1, 1),
            MaxPool("pool2", 3, 2, ceil_mode=True),
            *modules,
            GlobalAvgPool("pool5"),
            Linear("classifier", 1000),
        ),
        notes=notes,
    )


BN_INCEPTION = _network(
    "bn-inception",
    "BN-Inception",
    "Ioffe and Szegedy, arXiv:1502.03167, figure 5",
    False,
    "Variant: convolutions have no bias before their normalisation. Published weights keep one: 11,295,240 parameters.",
)
SE_INCEPTION = _network(
    "se-inception",
    "SE-BN-Inception",
    "Hu et al., arXiv:1709.01507, table 2, on Ioffe and Szegedy, arXiv:1502.03167, figure 5",
    True,
    "Variant: squeeze-and-excitation with reduction 16 after each of BN-Inception's ten modules. The paper (table 2): "
    "2.04 GFLOPs, a multiply-add counted once.",
)
