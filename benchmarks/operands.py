"""A case's tensors, in every layout and in float64, and what PyTorch computes from them: the reference."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from . import formulas as f
from .models import LAYOUTS

DTYPES = {"f32": torch.float32, "f64": torch.float64, "f16": torch.float16, "bf16": torch.bfloat16}
# Where |y| is below this part of its largest value, rounding may put the sides on different sides of ReLU's kink.
_KINK = {"f32": 1e-5, "f64": 1e-12, "f16": 4e-3, "bf16": 3e-2}
# PyTorch's float64 convolution writes out the column matrix of a whole batch: images are taken few at a time.
_COLUMN_BYTES = 256 << 20


class TooLarge(Exception):
    """The case's tensors would not fit into the memory that is free."""


@dataclass
class Tensors:
    """x (n,c,h,w), weight (k,c/groups,r,s), bias (k,), residual and y (forward's output), dy (its gradient): (n,k,p,q).
    Those that the pass does not read are None. `dtype` linear: x (n,c), weight (k,c)."""

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


def torch_forward(fields, x, weight=None, bias=None, residual=None, best=False):
    """PyTorch's function of the same name, as a layer uses it: ReLU in place, unequal pads by F.pad. `best`: what
    else PyTorch has for the problem, if that is faster: a mean for averages over whole maps (AdaptiveAvgPool2d(1))."""
    kind = fields["kind"]
    if kind == "linear":
        y = F.linear(x.flatten(1), weight, bias)
    elif kind == "conv":
        y = F.conv2d(
            *_padded(fields, x, weight, bias), stride(fields), _pad(fields), dilation(fields), fields["groups"]
        )
    elif kind == "max":
        y = F.max_pool2d(x, window(fields), stride(fields), _pad(fields), dilation(fields), fields["ceil_mode"])
    elif best and is_global(fields):
        y = F.adaptive_avg_pool2d(x, 1)
    else:
        y = F.avg_pool2d(x, *avg_arguments(fields))
    if residual is not None:
        y = y + residual if torch.is_grad_enabled() and y.requires_grad else y.add_(residual)
    return y.relu_() if fields.get("activation") == "relu" else y


def _padded(fields, x, weight, bias):
    top, left, bottom, right = pads(fields)
    if (top, left) == (bottom, right):
        return x, weight, bias
    return F.pad(x, (left, right, top, bottom)), weight, bias


def _pad(fields):
    """What the operator itself pads: nothing where F.pad did."""
    top, left, bottom, right = pads(fields)
    return (top, left) if (top, left) == (bottom, right) else (0, 0)


def window(fields):
    return [fields["r"], fields["s"]]


def stride(fields):
    return [fields["stride_h"], fields["stride_w"]]


def dilation(fields):
    return [fields.get("dilation_h", 1), fields.get("dilation_w", 1)]


def pads(fields):
    """Top, left, bottom, right."""
    top, left = fields["pad_top"], fields["pad_left"]
    return [top, left, fields.get("pad_bottom", top), fields.get("pad_right", left)]


def avg_arguments(fields):
    """What follows the input of F.avg_pool2d."""
    divisor = fields.get("divisor") or None
    counts = fields.get("count_include_pad", True)
    return window(fields), stride(fields), _pad(fields), fields["ceil_mode"], counts, divisor


def is_global(fields):
    """Whether an average is of every map as a whole."""
    whole = window(fields) == [fields["h"], fields["w"]] and pads(fields) == [0, 0, 0, 0]
    return fields["kind"] == "avg" and whole and not fields.get("divisor")


def output_plane(fields):
    """(p, q), by the formula; below 1 where the window does not fit."""
    if fields["kind"] == "linear":
        return 1, 1
    top, left, bottom, right = pads(fields)
    sizes = []
    for axis, size, far in (("h", fields["h"], top + bottom), ("w", fields["w"], left + right)):
        reach = fields["r" if axis == "h" else "s"]
        step, spread = max(1, fields[f"stride_{axis}"]), fields.get(f"dilation_{axis}", 1)
        slack = size + far - spread * (reach - 1) - 1
        sizes.append((slack + (step - 1 if fields.get("ceil_mode") else 0)) // step + 1)
    return tuple(sizes)


def needed_bytes(case):
    """About what verifying and measuring the case holds at once: float64, both layouts, results of several sides."""
    fields = case.fields
    p, q = (max(0, size) for size in output_plane(fields))
    if case.kind == "linear":
        x, weight, y = fields["n"] * fields["c"], fields["c"] * fields["k"], fields["n"] * fields["k"]
    else:
        x = fields["n"] * fields["c"] * fields["h"] * fields["w"]
        y = fields["n"] * fields.get("k", fields["c"]) * p * q
        weight = 0
        if case.kind == "conv":
            weight = fields["k"] * (fields["c"] // max(1, fields["groups"])) * fields["r"] * fields["s"]
    size = DTYPES[case.dtype].itemsize
    kept = x + weight + y
    return kept * (3 * size + 8) + (0 if case.direction == "fwd" else kept * (8 + size)) + _COLUMN_BYTES


class Operands:
    """The tensors of a case: those of the network's layer, or normal noise of the seed.

    Weights are scaled by sqrt(2 / fan-in), so that outputs are of the size of the inputs. `dy` (not of forward) is
    normal noise; in training it is zero where the output is within rounding of ReLU's kink, where the two sides and
    the reference may rightly disagree on whether the gradient passes.

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
                y = torch_forward(plain, base.x, base.weight, base.bias)
                if fields.get("residual"):
                    base.residual = self._noise(y.shape, generator)
                    y = y + base.residual
            if case.direction != "fwd":
                base.dy = self._noise(y.shape, generator)
                if self._training and fields.get("activation") == "relu":
                    base.dy[y.abs() < _KINK[case.dtype] * y.abs().max()] = 0
                if not self._training and fields.get("activation") == "relu":
                    base.y = y.relu_()
        wants = {id(t) for t in (base.weight, base.bias, None if case.first else base.x) if t is not None}
        self._wants_gradient = wants if self._training else set()
        self._base, self._made = base, {}

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
        more = direction == "grad_weight" and base.bias is not None
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
        if self.case.kind != "conv":
            return 0
        return 8 * f.elements((fields["c"], fields["r"], fields["s"], *output_plane(fields)))


def _random(fields, generator):
    """(x, weight, bias) in float32, NCHW. Sizes are torch's to judge."""
    if fields["kind"] == "linear":
        raise ValueError("linear layers come with their tensors")
    x = torch.randn([fields[key] for key in "nchw"], generator=generator)
    if fields["kind"] != "conv":
        return x, None, None
    sizes = [fields["k"], fields["c"] // max(1, fields["groups"]), fields["r"], fields["s"]]
    weight = torch.randn(sizes, generator=generator) * (2 / max(1, f.elements(sizes[1:]))) ** 0.5
    bias = torch.rand([fields["k"]], generator=generator) * 0.2 - 0.1 if fields.get("bias") else None
    return x, weight, bias
