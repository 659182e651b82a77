"""The words in which networks are described: one small dataclass for each kind of layer. blocks.py joins them.

A description holds what a paper's table holds. Shapes, parameters, MACs, the torch module and the problem that a
kernel sees all follow from it. Shapes are without the batch: (channels, height, width), or (features,).

Convolutions, pools and linear layers do the work: `problem` gives the fields of the ConvProblem or PoolProblem that a
kernel sees (linear layers have none), and `as_run` the plain layer that one is asked for: numbers instead of words,
batch normalisation folded or apart. Activation, Bias and Crop stand between them.
"""

import dataclasses
from dataclasses import dataclass

from . import formulas as f


def pair(value):
    return value if isinstance(value, tuple) else (value, value)


def _by(value):
    a, b = pair(value)
    return f"{a}" if a == b else f"{a}x{b}"


class _Layer:
    """What holds for a layer without weights or products."""

    def parameters(self, shape):
        return 0

    def macs(self, shape, batch=1):
        return 0

    def flops(self, shape, batch=1):
        return f.flops(self.macs(shape, batch))

    def as_run(self, shape, training=False):
        """The layer as a kernel is asked for it: same output, plainer words."""
        return self


@dataclass(frozen=True)
class Conv(_Layer):
    """`relu` follows the convolution in place, `norm` (batch normalisation) before it: one layer in every table, as in
    the papers'. With `norm`, `bias` should be False: the normalisation has its own.

    `padding` "same" (stride 1, odd kernels): the output is as large as the input.
    """

    name: str
    k: int
    kernel: int | tuple
    stride: int | tuple = 1
    padding: int | tuple | str = 0
    groups: int = 1
    bias: bool = True
    relu: bool = False
    norm: bool = False
    kind = "conv"

    def __post_init__(self):
        if self.padding == "same":
            if pair(self.stride) != (1, 1) or any(size % 2 == 0 for size in pair(self.kernel)):
                raise ValueError(f"{self.name}: 'same' takes stride 1 and an odd kernel")
        elif isinstance(self.padding, str):
            raise ValueError(f"{self.name}: padding is a number, a pair or 'same', but got {self.padding!r}")

    def pads(self):
        """(above and below, left and right)"""
        return tuple(size // 2 for size in pair(self.kernel)) if self.padding == "same" else pair(self.padding)

    def output_shape(self, shape):
        _, h, w = shape
        (r, s), (u, v), (a, b) = pair(self.kernel), pair(self.stride), self.pads()
        return self.k, f.window_positions(h, r, u, a), f.window_positions(w, s, v, b)

    def parameters(self, shape):
        weights = f.conv_parameters(self.k, shape[0], *pair(self.kernel), self.groups, self.bias)
        return weights + (f.norm_parameters(self.k) if self.norm else 0)

    def macs(self, shape, batch=1):
        return f.conv_macs(batch, *self.output_shape(shape), shape[0], *pair(self.kernel), self.groups)

    def words(self):
        depthwise = self.groups == self.k > 1
        text = ("depthwise " if depthwise else "") + f"conv {'x'.join(map(str, pair(self.kernel)))}"
        text += f" stride {_by(self.stride)}" if pair(self.stride) != (1, 1) else ""
        if any(self.pads()):
            text += " same" if self.padding == "same" else f" pad {_by(self.padding)}"
        text += f" groups {self.groups}" if self.groups > 1 and not depthwise else ""
        return text + (" + BN" if self.norm else "") + (" + ReLU" if self.relu else "")

    def as_run(self, shape, training=False):
        """At inference the normalisation is folded into weights and bias; in training it runs between convolution and
        ReLU, both of which it leaves without the other."""
        a, b = self.pads()
        plain = dataclasses.replace(self, padding=a if a == b else (a, b)) if self.padding == "same" else self
        if not self.norm:
            return plain
        folded = {"bias": self.bias, "relu": False} if training else {"bias": True}
        return dataclasses.replace(plain, norm=False, **folded)

    def problem(self, shape, batch, layout, direction="forward"):
        """The fields of the ConvProblem: `_C.problem_text` makes its canonical text of them."""
        run = self.as_run(shape, training=direction != "forward")
        c, h, w = shape
        (r, s), (u, v), (a, b) = pair(run.kernel), pair(run.stride), pair(run.padding)
        return {
            "kind": "conv", "n": batch, "c": c, "h": h, "w": w, "k": run.k, "r": r, "s": s,
            "stride_h": u, "stride_w": v, "pad_top": a, "pad_left": b, "pad_bottom": a, "pad_right": b,
            "groups": run.groups, "dtype": "f32", "layout": layout, "pass": direction,
            "activation": "relu" if run.relu else "none",
            "bias": run.bias and direction != "grad_input",
        }  # fmt: skip


@dataclass(frozen=True)
class ConvTranspose(_Layer):
    """Transposed (fractionally strided) convolution: the gradient of a convolution by its input, as a layer."""

    name: str
    k: int
    kernel: int | tuple
    stride: int | tuple = 1
    padding: int | tuple = 0
    bias: bool = True
    kind = "conv_transpose"

    def output_shape(self, shape):
        _, h, w = shape
        (r, s), (u, v), (a, b) = pair(self.kernel), pair(self.stride), pair(self.padding)
        return self.k, f.transposed_size(h, r, u, a), f.transposed_size(w, s, v, b)

    def parameters(self, shape):
        return f.conv_parameters(shape[0], self.k, *pair(self.kernel), bias=False) + (self.k if self.bias else 0)

    def macs(self, shape, batch=1):
        return f.conv_macs(batch, *shape, self.k, *pair(self.kernel))

    def words(self):
        text = f"transposed conv {'x'.join(map(str, pair(self.kernel)))} stride {_by(self.stride)}"
        return text + (f" pad {_by(self.padding)}" if any(pair(self.padding)) else "")

    def problem(self, shape, batch, layout, direction="forward"):
        """The fields of the convolution whose gradient by the input this is; forward and grad_input change places."""
        k, h, w = self.output_shape(shape)
        (r, s), (u, v), (a, b) = pair(self.kernel), pair(self.stride), pair(self.padding)
        mirrored = {"forward": "grad_input", "grad_input": "forward", "grad_weight": "grad_weight"}
        return {
            "kind": "conv", "n": batch, "c": k, "h": h, "w": w, "k": shape[0], "r": r, "s": s,
            "stride_h": u, "stride_w": v, "pad_top": a, "pad_left": b, "pad_bottom": a, "pad_right": b,
            "groups": 1, "dtype": "f32", "layout": layout, "pass": mirrored[direction],
            "activation": "none", "bias": self.bias and direction == "forward",
        }  # fmt: skip


@dataclass(frozen=True)
class _Pool(_Layer):
    name: str
    window: int | tuple
    stride: int | tuple
    padding: int | tuple = 0
    ceil_mode: bool = False

    def output_shape(self, shape):
        c, h, w = shape
        (r, s), (u, v), (a, b) = pair(self.window), pair(self.stride), pair(self.padding)
        ceil = self.ceil_mode
        return c, f.window_positions(h, r, u, a, 1, ceil), f.window_positions(w, s, v, b, 1, ceil)

    def flops(self, shape, batch=1):
        return f.pool_flops(batch, *self.output_shape(shape), *pair(self.window))

    def words(self):
        text = f"{self.kind} pool {'x'.join(map(str, pair(self.window)))} stride {_by(self.stride)}"
        text += f" pad {_by(self.padding)}" if any(pair(self.padding)) else ""
        return text + (" ceil" if self.ceil_mode else "")

    def problem(self, shape, batch, layout, direction="forward", training=False):
        c, h, w = shape
        (r, s), (u, v), (a, b) = pair(self.window), pair(self.stride), pair(self.padding)
        return {
            "kind": self.kind, "n": batch, "c": c, "h": h, "w": w, "r": r, "s": s, "stride_h": u, "stride_w": v,
            "pad_top": a, "pad_left": b, "ceil_mode": self.ceil_mode, "dtype": "f32", "layout": layout,
            "pass": direction, "offset_bytes": self.offset_bytes() if training else 0,
        }  # fmt: skip

    def offset_bytes(self):
        """Bytes per output that max-pooling keeps for backward: a position in the window, all ones for none."""
        return 0


@dataclass(frozen=True)
class MaxPool(_Pool):
    kind = "max"

    def offset_bytes(self):
        positions = f.elements(pair(self.window))
        return 1 if positions <= 255 else 2 if positions <= 65535 else 4


@dataclass(frozen=True)
class AvgPool(_Pool):
    """`count_include_pad`: whether zeros of the padding count in an average, as in torch."""

    count_include_pad: bool = True
    kind = "avg"

    def problem(self, shape, batch, layout, direction="forward", training=False):
        fields = super().problem(shape, batch, layout, direction, training)
        return {**fields, "count_include_pad": self.count_include_pad}


@dataclass(frozen=True)
class GlobalAvgPool(_Layer):
    """The average of every map: (channels, 1, 1), whatever the maps' size."""

    name: str
    kind = "avg"

    def output_shape(self, shape):
        return shape[0], 1, 1

    def flops(self, shape, batch=1):
        return self.as_run(shape).flops(shape, batch)

    def words(self):
        return "global avg pool"

    def as_run(self, shape, training=False):
        return AvgPool(self.name, shape[1:], shape[1:])  # the window's stride: what an adaptive pool is to kernels


@dataclass(frozen=True)
class Linear(_Layer):
    """A fully connected layer; an input of three dimensions is flattened before it."""

    name: str
    features: int
    bias: bool = True
    relu: bool = False
    kind = "linear"

    def output_shape(self, shape):
        return (self.features,)

    def parameters(self, shape):
        return f.linear_parameters(f.elements(shape), self.features, self.bias)

    def macs(self, shape, batch=1):
        return f.linear_macs(batch, f.elements(shape), self.features)

    def words(self):
        return "linear" + (" + ReLU" if self.relu else "")


@dataclass(frozen=True)
class Activation(_Layer):
    """An activation that is a layer of its own: "relu" or "sigmoid", or "softmax" over all elements of an image, which
    are flattened for it."""

    name: str
    function: str
    kind = "activation"

    def output_shape(self, shape):
        return (f.elements(shape),) if self.function == "softmax" else shape

    def words(self):
        return {"relu": "ReLU"}.get(self.function, self.function)


@dataclass(frozen=True)
class Bias(_Layer):
    """A trained bias for each position of each map."""

    name: str
    kind = "bias"

    def output_shape(self, shape):
        return shape

    def parameters(self, shape):
        return f.elements(shape)

    def words(self):
        return "bias for each position"


@dataclass(frozen=True)
class Crop(_Layer):
    """A part of every map, `size` (height, width), that starts `offset` rows and columns inside."""

    name: str
    size: tuple
    offset: int
    kind = "crop"

    def output_shape(self, shape):
        if any(self.offset + part > whole for part, whole in zip(self.size, shape[1:], strict=True)):
            raise ValueError(f"{self.name}: {_by(self.size)} at {self.offset} does not lie in {_by(shape[1:])}")
        return (shape[0], *self.size)

    def words(self):
        return f"crop at {self.offset}"
