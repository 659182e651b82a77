"""Problems as canonical texts, with their FLOPs and least bytes, in plain Python: this needs no built extension.

The grammar is that of csrc/core/text.cpp and text_pool.cpp; tests compare both with the extension's own.
"""

from .. import formulas as f
from ..layers import pair

PASSES = {"forward": "fwd", "grad_input": "grad_input", "grad_weight": "grad_weight"}


def _both_layouts(sizes):
    """Whether a dense tensor of these sizes has the same strides in NCHW and NHWC."""
    _, c, h, w = sizes
    return c == 1 or h * w == 1


def _pair_word(prefix, value):
    h, w = pair(value)
    return f"{prefix}{h}" if h == w else f"{prefix}{h}x{w}"


def _layout_word(layout, operands):
    return "nchw" if all(_both_layouts(sizes) for sizes in operands) else layout


def conv_sizes(layer, shape, batch):
    """Sizes of (x, weight, y)."""
    r, s = pair(layer.kernel)
    return (batch, *shape), (layer.k, shape[0] // layer.groups, r, s), (batch, *layer.output_shape(shape))


def conv_text(layer, shape, batch, mode, layout, direction="forward", bias_relu=False):
    """The text of a convolution; `mode` is of modes.MODES. `bias_relu` belongs to the forward pass."""
    x, weight, y = conv_sizes(layer, shape, batch)
    words = [
        "conv",
        f"n{x[0]}c{x[1]}h{x[2]}w{x[3]}",
        f"k{weight[0]}r{weight[2]}s{weight[3]}",
        _pair_word("st", layer.stride),
        _pair_word("pd", layer.padding),
        "dl1",
        f"g{layer.groups}",
        mode.word,
        _layout_word(layout, (x, weight, y)),
        PASSES[direction],
        *(("bias", "relu") if bias_relu else ()),
        *(("tf32",) if mode.math == "tf32" else ()),
    ]
    return " ".join(words)


def conv_bytes(layer, shape, batch, mode, bias_relu=False):
    """Each operand moved once; the three passes move the same ones."""
    moved = sum(f.elements(sizes) for sizes in conv_sizes(layer, shape, batch)) + (layer.k if bias_relu else 0)
    return moved * mode.bytes


def pool_text(layer, shape, batch, mode, layout, direction="forward"):
    """The text of a pool; max-pooling's gradient reads window offsets, its forward is the one of inference."""
    x, y = (batch, *shape), (batch, *layer.output_shape(shape))
    r, s = pair(layer.window)
    offsets = layer.offset_bytes() if direction == "grad_input" else 0
    words = [
        f"{layer.kind}pool",
        f"n{x[0]}c{x[1]}h{x[2]}w{x[3]}",
        f"r{r}s{s}",
        _pair_word("st", layer.stride),
        _pair_word("pd", layer.padding),
        "dl1",
        mode.word,
        _layout_word(layout, (x, y)),
        PASSES[direction],
        *((f"off{8 * offsets}",) if offsets else ()),
        *(("ceil",) if layer.ceil_mode else ()),
    ]
    return " ".join(words)


def pool_bytes(layer, shape, batch, mode, direction="forward"):
    """Input and output once, and one offset per output where the gradient of max-pooling needs it: not what a peer
    moves, but the least that must be."""
    x, y = batch * f.elements(shape), batch * f.elements(layer.output_shape(shape))
    return (x + y) * mode.bytes + (y * layer.offset_bytes() if direction == "grad_input" else 0)


def gemm_view(layer, shape, batch):
    """(m, n, k) of a convolution's forward pass as a matrix product, of one group: m outputs per filter, n filters,
    sums of k products."""
    _, weight, y = conv_sizes(layer, shape, batch)
    return y[0] * y[2] * y[3], layer.k // layer.groups, f.elements(weight[1:])
