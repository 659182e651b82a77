"""A case's tensors, in every layout and in float64, and what PyTorch computes from them: the reference."""

from dataclasses import dataclass

import torch

from . import activations, torch_layer
from . import formulas as f
from . import geometry as g
from .models import LAYOUTS

DTYPES = {"f32": torch.float32, "f64": torch.float64, "f16": torch.float16, "bf16": torch.bfloat16}
# Within this part of an output's largest value, rounding may put the sides on different sides of ReLU's kink.
_KINK = {"f32": 1e-5, "f64": 1e-12, "f16": 4e-3, "bf16": 3e-2}
# PyTorch's float64 convolution writes out the column matrix of a whole batch: images are taken few at a time.
_COLUMN_BYTES = 256 << 20


class TooLarge(Exception):
    """The case's tensors would not fit into the memory that is free."""


@dataclass
class Tensors:
    """x (n,c,h,w), weight (k,c/groups,r,s), bias (k,), residual and y (forward's output), dy (its gradient): (n,k,p,q).
    Of a transposed convolution: x (n,k,p,q), weight alike, bias (c,), y and dy (n,c,h,w). Those that the pass does not
    read are None. `dtype` linear: x (n,c), weight (k,c)."""

    x: torch.Tensor
    weight: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    residual: torch.Tensor | None = None
    y: torch.Tensor | None = None
    dy: torch.Tensor | None = None

    def all(self):
        return [t for t in (self.x, self.weight, self.bias, self.residual, self.y, self.dy) if t is not None]

    def map(self, change):
        each = (self.x, self.weight, self.bias, self.residual, self.y, self.dy)
        return Tensors(*(None if t is None else change(t) for t in each))

    def nbytes(self):
        return sum(t.numel() * t.element_size() for t in self.all())


def needed_bytes(case):
    """About what verifying and measuring the case holds at once: float64, both layouts, results of several sides."""
    fields = case.fields
    if case.kind == "linear":
        x, weight, y = fields["n"] * fields["c"], fields["c"] * fields["k"], fields["n"] * fields["k"]
    else:
        x, y = (f.elements(max(0, size) for size in of(fields)) for of in (g.input_sizes, g.output_sizes))
        weight = f.elements(g.weight_sizes(fields)) if case.kind in g.CONVOLUTIONS else 0
    size = DTYPES[case.dtype].itemsize
    kept = x + weight + y
    return kept * (3 * size + 8) + (0 if case.direction == "fwd" else kept * (8 + size)) + _COLUMN_BYTES


class Operands:
    """The tensors of a case: those of the network's layer, or normal noise of the seed.

    Weights are scaled by sqrt(2 / fan-in), so that outputs are of the size of the inputs. `dy` (not of forward) is
    normal noise; in training it is zero where the activation's input is within rounding of a kink (ReLU's is at 0),
    where the two sides and the reference may rightly disagree on whether the gradient passes.

    Raises:
        TooLarge: `free` bytes are too few.
        RuntimeError: PyTorch refuses the problem.
    """

    def __init__(self, case, seed=0, free=None):
        need = needed_bytes(case)
        if free is not None and need > free:
            raise TooLarge(f"needs about {need / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free")
        self.case = case
        self._dtype = DTYPES[case.dtype]
        self._training = case.direction == "train"
        generator = torch.Generator().manual_seed(seed)
        x, weight, bias = case.tensors or _random(case.fields, generator)
        base = Tensors(*(None if t is None else t.to(self._dtype) for t in (x, weight, bias)))
        fields = case.fields
        wants_output = case.direction != "fwd" or fields.get("residual")
        if wants_output:
            with torch.no_grad():
                plain = {**fields, "activation": "none"}
                y = torch_layer.forward(plain, base.x, base.weight, base.bias)
                if fields.get("residual"):
                    base.residual = self._noise(y.shape, generator)
                    y = y + base.residual
                if case.direction != "fwd":
                    base.dy = self._noise(y.shape, generator)
                    kinks = activations.near_a_kink(fields, y, _KINK[case.dtype]) if self._training else None
                    if kinks is not None:
                        base.dy[kinks] = 0
                    if not self._training and self._gradient_reads_output():
                        base.y = activations.apply(fields, y)
        wants = {id(t) for t in (base.weight, base.bias, None if case.first else base.x) if t is not None}
        self._wants_gradient = wants if self._training else set()
        self._base, self._made = base, {}

    def _gradient_reads_output(self):
        return self.case.kind == "lp" or self.case.fields.get("activation", "none") != "none"

    def _noise(self, shape, generator):
        return torch.randn(shape, generator=generator).to(self._dtype)

    def of(self, layout):
        """The tensors in "nchw" or "nhwc"."""
        if layout not in self._made:
            # the tensors are NCHW already: no copy of 100 million weights
            convert = layout != "nchw"
            self._made[layout] = self._leaves(
                lambda t: t.clone(memory_format=LAYOUTS[layout]) if convert and t.dim() == 4 else t.detach()
            )
        return self._made[layout]

    def _leaves(self, change):
        return self._base.map(lambda t: change(t).requires_grad_(id(t) in self._wants_gradient))

    def result_names(self):
        """What running the case returns, in words."""
        names = {"grad_input": ["gradient of input"], "grad_weight": ["gradient of weight"], "fwd": ["output"]}
        base, direction = self._base, self.case.direction
        if direction == "train":
            given = (("input", base.x), ("weight", base.weight), ("bias", base.bias))
            return ["output", *(f"gradient of {name}" for name, t in given if id(t) in self._wants_gradient)]
        more = direction == "grad_weight" and base.bias is not None and self.case.kind != "conv_transpose"
        return names[direction] + (["gradient of bias"] if more else [])

    def reference(self, run):
        """The results in float64. `run(case, tensors)` computes them; a few images at a time, gradients of weights
        and biases added up."""
        base, n = self._base, max(1, len(self._base.x))
        step = max(1, min(n, _COLUMN_BYTES // max(1, self._columns_per_image())))
        parts = []
        for at in range(0, n, step):
            cut = lambda t, at=at: t[at : at + step] if t is not None else None  # noqa: E731
            images = Tensors(cut(base.x), base.weight, base.bias, cut(base.residual), cut(base.y), cut(base.dy))
            wanted = [id(t) in self._wants_gradient for t in (base.x, base.weight, base.bias)]
            images = images.map(lambda t: t.detach().double())
            for tensor, wants in zip((images.x, images.weight, images.bias), wanted, strict=True):
                if wants:
                    tensor.requires_grad_()
            parts.append(run(self.case, images))
        if len(parts) == 1:
            return parts[0]
        whole = [name in ("output", "gradient of input") for name in self.result_names()]
        return [torch.cat(each) if w else sum(each) for w, each in zip(whole, zip(*parts, strict=True), strict=True)]

    def _columns_per_image(self):
        fields = self.case.fields
        if self.case.kind not in g.CONVOLUTIONS:
            return 0
        return 8 * f.elements((fields["c"], fields["r"], fields["s"], *g.output_plane(fields)))


def _random(fields, generator):
    """(x, weight, bias) in float32, NCHW. Sizes are torch's to judge."""
    kind = fields["kind"]
    if kind == "linear":
        raise ValueError("linear layers come with their tensors")
    x = torch.randn(g.input_sizes(fields), generator=generator)
    if kind == "lp" and fields["norm"] % 2:
        x = x.abs()  # odd and broken powers of negative numbers have no root
    if kind not in g.CONVOLUTIONS:
        return x, None, None
    sizes = g.weight_sizes(fields)
    terms = f.elements(sizes[1:])
    if kind == "conv_transpose":
        terms = sizes[0] // max(1, fields["groups"]) * f.elements(sizes[2:]) // max(1, f.elements(g.stride(fields)))
    weight = torch.randn(sizes, generator=generator) * (2 / max(1, terms)) ** 0.5
    bias = torch.rand([g.bias_size(fields)], generator=generator) * 0.2 - 0.1 if fields.get("bias") else None
    return x, weight, bias
