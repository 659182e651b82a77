"""The words in which networks are described: one small dataclass per kind of layer, and `Network`, a list of them.

A description holds what a paper's table holds. Shapes, parameters, MACs, the torch module and the problem that a
kernel sees all follow from it. Shapes are without the batch: (channels, height, width), or (features,).
Layers run one after the other; `Network.walk` and `models.build` alone know that.
"""

from dataclasses import dataclass

from . import formulas as f


def pair(value):
    return value if isinstance(value, tuple) else (value, value)


@dataclass(frozen=True)
class Conv:
    """`relu` follows the convolution in place: one layer in every table, as in the papers'."""

    name: str
    k: int
    kernel: int | tuple
    stride: int | tuple = 1
    padding: int | tuple = 0
    groups: int = 1
    bias: bool = True
    relu: bool = False
    kind = "conv"

    def output_shape(self, shape):
        _, h, w = shape
        (r, s), (u, v), (a, b) = pair(self.kernel), pair(self.stride), pair(self.padding)
        return self.k, f.window_positions(h, r, u, a), f.window_positions(w, s, v, b)

    def parameters(self, shape):
        return f.conv_parameters(self.k, shape[0], *pair(self.kernel), self.groups, self.bias)

    def macs(self, shape, batch=1):
        return f.conv_macs(batch, *self.output_shape(shape), shape[0], *pair(self.kernel), self.groups)

    def flops(self, shape, batch=1):
        return f.flops(self.macs(shape, batch))

    def words(self):
        (r, s), (u, v), (a, b) = pair(self.kernel), pair(self.stride), pair(self.padding)
        text = f"conv {r}x{s}"
        text += f" stride {u}" if (u, v) == (u, u) != (1, 1) else "" if (u, v) == (1, 1) else f" stride {u}x{v}"
        text += f" pad {a}" if (a, b) == (a, a) != (0, 0) else "" if (a, b) == (0, 0) else f" pad {a}x{b}"
        text += f" groups {self.groups}" if self.groups > 1 else ""
        return text + (" + ReLU" if self.relu else "")

    def problem(self, shape, batch, layout, direction="forward"):
        """The fields of the ConvProblem: `_C.problem_text` makes its canonical text of them."""
        c, h, w = shape
        (r, s), (u, v), (a, b) = pair(self.kernel), pair(self.stride), pair(self.padding)
        return {
            "kind": "conv", "n": batch, "c": c, "h": h, "w": w, "k": self.k, "r": r, "s": s,
            "stride_h": u, "stride_w": v, "pad_top": a, "pad_left": b, "pad_bottom": a, "pad_right": b,
            "groups": self.groups, "dtype": "f32", "layout": layout, "pass": direction,
            "activation": "relu" if self.relu else "none",
            "bias": self.bias and direction != "grad_input",
        }  # fmt: skip


@dataclass(frozen=True)
class _Pool:
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

    def parameters(self, shape):
        return 0

    def macs(self, shape, batch=1):
        return 0

    def flops(self, shape, batch=1):
        return f.pool_flops(batch, *self.output_shape(shape), *pair(self.window))

    def words(self):
        (r, s), (u, v) = pair(self.window), pair(self.stride)
        return f"{self.kind} pool {r}x{s} stride {u if u == v else f'{u}x{v}'}"

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
        if self.kind != "max":
            return 0
        positions = f.elements(pair(self.window))
        return 1 if positions <= 255 else 2 if positions <= 65535 else 4


@dataclass(frozen=True)
class MaxPool(_Pool):
    kind = "max"


@dataclass(frozen=True)
class AvgPool(_Pool):
    kind = "avg"


@dataclass(frozen=True)
class Linear:
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

    def flops(self, shape, batch=1):
        return f.flops(self.macs(shape, batch))

    def words(self):
        return "linear" + (" + ReLU" if self.relu else "")


@dataclass(frozen=True)
class Network:
    """`notes` are printed below the description: what the variant is, which published figures it is checked against."""

    name: str
    title: str
    source: str
    input_shape: tuple
    layers: tuple
    notes: tuple = ()
    image: str = "china"  # the input that `run` takes unless told otherwise

    def walk(self):
        """Yield (layer, input shape, output shape) in the order of execution."""
        shape = self.input_shape
        for layer in self.layers:
            after = layer.output_shape(shape)
            yield layer, shape, after
            shape = after

    def parameters(self):
        return sum(layer.parameters(shape) for layer, shape, _ in self.walk())

    def activations(self):
        """Elements per image that forward holds: the input and every layer's output (ReLU works in place)."""
        return f.elements(self.input_shape) + sum(f.elements(after) for _, _, after in self.walk())

    def classifies(self):
        return len(list(self.walk())[-1][2]) == 1
