"""What a run measures: a list of cases. Networks, suites, CSV files, problem texts and sweeps all become cases."""

import dataclasses
import math
import os
import re
from dataclasses import dataclass

import fastconv
import torch

from . import activations, models, suites
from . import geometry as g
from .suites import BadSuite

_C = fastconv.ops.extension()  # raises ExtensionError, which names the cure

KINDS = (*g.CONVOLUTIONS, "max", "avg", "lp", "linear")
_WEIGHTED = (*g.CONVOLUTIONS, "linear")
PASSES = ("fwd", "grad_input", "grad_weight", "train")
DTYPES = ("f32", "f64", "f16", "bf16")
LAYOUTS = tuple(models.LAYOUTS)
_IN_TEXT = {"forward": "fwd", "grad_input": "grad_input", "grad_weight": "grad_weight"}
_STEPS = (("st", "stride"), ("dl", "dilation"))
# The pass of the convolution that a transposed one runs in a pass of its own.
_MIRRORED = {"forward": "grad_input", "grad_input": "forward", "grad_weight": "grad_weight"}
# What a forward problem does not have, or what follows from the rest.
_DERIVED = ("layout", "pass", "accuracy", "math", "deterministic", "offset_bytes", "x_strides", "y_strides",
            "weight_strides", "aux_strides", "offset_strides", "x_align", "weight_align", "y_align")  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One problem in one pass.

    fields: the forward problem, as `_C.problem_text` takes it, without layout, pass and accuracy class. kind "linear"
        has n, c (inputs), k (outputs), bias and activation: a layer that torch runs on both sides. kind
        "conv_transpose" has the fields of the convolution whose gradient by the input it is.
    direction: of PASSES; "train" is the forward pass and every gradient, as autograd runs them.
    layouts: those that fastconv is measured in; the best one is shown.
    accuracy: fastconv's class; None is the run's.
    tensors: (x, weight, bias) in float32 and NCHW, or None for random ones.
    first: the first layer of a network, whose input wants no gradient.
    """

    name: str
    source: str
    fields: dict
    direction: str = "fwd"
    layouts: tuple = LAYOUTS
    accuracy: str | None = None
    tensors: tuple | None = dataclasses.field(default=None, repr=False)
    first: bool = False

    @property
    def kind(self):
        return self.fields["kind"]

    @property
    def convolves(self):
        return self.kind in g.CONVOLUTIONS

    @property
    def dtype(self):
        return self.fields.get("dtype", "f32")

    def key(self):
        """What tells it from other cases of a run."""
        return self.name, self.source, tuple(sorted(self.fields.items())), self.direction, self.layouts, self.accuracy

    def sizes(self):
        """The problem in words that also an impossible one has."""
        get = self.fields.get
        if self.kind == "linear":
            return f"linear {get('c')} -> {get('k')}"
        filters = f"k{get('k')}" if self.convolves else ""
        steps = " ".join(f"{word}{get(name + '_h', 1)}x{get(name + '_w', 1)}" for word, name in _STEPS)
        kind = self.kind if self.convolves else f"{self.kind}pool"
        return (
            f"{kind} n{get('n')}c{get('c')}h{get('h')}w{get('w')} {filters}r{get('r')}s{get('s')} {steps} "
            f"pd{get('pad_top')}x{get('pad_left')} g{get('groups', 1)} {self.dtype} {self.direction}"
        )

    def replace(self, **changes):
        return dataclasses.replace(self, **changes)

    def having(self, **fields):
        """The case with some fields of its problem changed."""
        return self.replace(fields={**self.fields, **fields})

    def passes(self):
        """The passes that the case runs, as problems name them."""
        if self.direction != "train":
            found = [next(word for word, short in _IN_TEXT.items() if short == self.direction)]
        else:
            found = [
                "forward",
                *([] if self.first else ["grad_input"]),
                *(["grad_weight"] if self.convolves or self.kind == "linear" else []),
            ]
        return [_MIRRORED[each] for each in found] if self.kind == "conv_transpose" else found

    def problems(self, layout, accuracy="torch"):
        """[(pass, the problem's canonical text)]

        Raises:
            ValueError: there is no such problem.
        """
        return [(each, _C.problem_text(self._fields(each, layout, accuracy))) for each in self.passes()]

    def texts(self, accuracy="torch"):
        """{layout: the text of the first pass}; nothing for linear layers, which are no problems of the extension."""
        layouts = () if self.kind == "linear" else self.layouts
        return {layout: self.problems(layout, accuracy)[0][1] for layout in layouts}

    def _fields(self, each, layout, accuracy):
        fields = {**self.fields, "layout": layout, "pass": each}
        if self.convolves:
            fields |= {"kind": "conv", "accuracy": self.accuracy or accuracy}
            with_bias = {"conv": ("forward", "grad_weight"), "conv_transpose": ("grad_input",)}[self.kind]
            fields["bias"] = bool(fields.get("bias")) and each in with_bias
            if each != "forward":
                fields["residual"] = False
            if self.direction == "train" and activations.needs_input(self.fields):
                fields.pop("activation_parameter", None)
                fields["activation"] = "none"  # it runs apart, as in torch
        elif self.kind == "max" and (self.direction == "train" or each != "forward"):
            fields["offset_bytes"] = offset_bytes(fields["r"] * fields["s"])
        return fields


def offset_bytes(positions):
    """Bytes that max-pooling keeps per output for its gradient: a position in the window, all ones for none."""
    return 1 if positions <= 255 else 2 if positions <= 65535 else 4


def of_network(network, model, x, only=None, training=False):
    """The cases of a network's layers, each with the tensors that it sees when `model` (models.build) is given `x`.

    In inference batch normalisation is folded into its convolution. `training` runs the model as a training step does
    (its running statistics follow), and leaves it in eval mode again.

    Layers of other kinds than KINDS (additions, concatenations, ...) are no cases of their own. `only`: names.
    """
    described = {layer.name: (layer, before) for layer, before, _ in network.walk(training) if layer.kind in KINDS}
    first = next(iter(described))
    names = [name for name in described if not only or name in only]
    cases = []
    model.train(training)
    for name, seen in _inputs_of(model, x, names).items():
        layer, before = described[name]
        parameters = models.weight_and_bias(model, name) if layer.kind in _WEIGHTED else (None, None)
        tensors = (seen, *parameters)
        cases.append(Case(name, network.name, fields_of(layer, before, len(x)), tensors=tensors, first=name == first))
    model.eval()
    return cases


def _inputs_of(model, x, names):
    """{name: what the module of this name is given}, in the order of `names`."""
    seen = {}

    def keep(name):
        def hook(module, given):
            seen[name] = given[0].detach()

        return hook

    handles = [model.get_submodule(name).register_forward_pre_hook(keep(name)) for name in names]
    try:
        with torch.no_grad():
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    return {name: seen[name] for name in names}


def fields_of(layer, before, batch):
    """A case's fields, of a network's layer whose input has the shape `before`."""
    if layer.kind == "linear":
        inputs_ = 1
        for size in before:
            inputs_ *= size
        activation = "relu" if layer.relu else "none"
        return {"kind": "linear", "n": batch, "c": inputs_, "k": layer.features, "bias": layer.bias,
                "activation": activation, "dtype": "f32"}  # fmt: skip
    fields = layer.problem(before, batch, "nchw")
    return {**{key: value for key, value in fields.items() if key not in _DERIVED}, "kind": layer.kind}


def of_suite(name):
    return [Case(line.name, name, {**line.fields, "dtype": "f32"}) for line in suites.load(name)]


def of_csv(path):
    """Raises BadSuite for a file that is no list of problems."""
    try:
        lines = suites.different(suites.read(path))
    except OSError as error:
        raise BadSuite(f"{path} cannot be read: {error.strerror}") from None
    return [Case(line.name, os.path.basename(path), {**line.fields, "dtype": "f32"}) for line in lines]


def of_text(text):
    """The case of a problem's canonical text, in its pass, layout and accuracy class. A text that is well formed but of
    an impossible problem (a window larger than the padded input) is a case too: PyTorch will say what is wrong.

    Raises:
        ValueError: it is no problem's text, or one with operands or flags that the benchmark does not make.
    """
    try:
        parsed = _C.parse_problem(text)
    except ValueError as error:
        if not str(error).startswith("fastconv: bad problem '"):
            raise
        return _impossible(text, error)
    canonical, facts = _C.problem_text(parsed), _C.problem_facts(text)
    words = {facts[key] for key in ("x_layout", "y_layout", "weight_layout") if key in facts} - {"both"}
    layout = words.pop() if len(words) == 1 else "nchw" if not words else None
    short = _IN_TEXT.get(parsed["pass"])
    if parsed["dtype"] not in DTYPES:
        raise ValueError(f"the benchmark runs {', '.join(DTYPES)}, not {parsed['dtype']}: '{text}'")
    fields = _of_parsed(parsed)
    if fields["kind"] == "conv_transpose":
        short = "fwd"
        _require_layer(fields, text)
    accuracy = parsed.get("accuracy")
    case = Case("", "problem", fields, short or "", (layout,) if layout in LAYOUTS else (), accuracy)
    known = fields.get("norm", 1) not in (math.inf, -math.inf)  # which are max-pooling of absolute values
    if not (short and case.layouts and known and case.problems(layout) == [(parsed["pass"], canonical)]):
        raise ValueError(
            f"the benchmark makes dense operands in nchw or nhwc and runs fwd, grad_input and grad_weight of conv, "
            f"maxpool, avgpool and lppool (of finite norm), without tf32, det or al: words, so it cannot run '{text}'"
        )
    return case


def _of_parsed(parsed):
    """A case's fields, of those of the extension's problem."""
    fields = {key: value for key, value in parsed.items() if key not in _DERIVED}
    if parsed["kind"] == "conv":
        if parsed["scale"]:
            raise ValueError("a scale belongs to a folded BatchNorm: the benchmark runs it as part of a network")
        if g.ACTIVATIONS.get(parsed["activation"]) is None:
            del fields["activation_parameter"]
        if parsed["pass"] == "grad_input" and parsed["bias"]:
            fields["kind"] = "conv_transpose"
        return fields
    if not parsed["adaptive"]:
        fields = {key: value for key, value in fields.items() if key not in ("adaptive", "p", "q")}
    if parsed["kind"] != "lp":
        del fields["norm"]
    return fields


def _require_layer(fields, text):
    """Raises ValueError for an epilogue of grad_input that no layer has."""
    if fields["activation"] != "none" or not g.equal_pads(fields):
        raise ValueError(
            f"grad_input with a bias is a transposed convolution, which has no activation and equal pads on both "
            f"sides, so the benchmark cannot run '{text}'"
        )


_SIZES = re.compile(
    r"(?P<kind>conv|maxpool|avgpool) n(?P<n>\d+)c(?P<c>\d+)h(?P<h>\d+)w(?P<w>\d+) "
    r"(?:k(?P<k>\d+))?r(?P<r>\d+)s(?P<s>\d+) "
    r"st(?P<stride>[\dx]+) pd(?P<pad>[\dx,]+) dl(?P<dilation>[\dx]+) (?:g(?P<groups>\d+) )?(?P<dtype>\w+) "
    r"(?P<layout>nchw|nhwc) (?P<pass>fwd|grad_input|grad_weight)\b(?P<flags>.*)"
)


def _impossible(text, error):
    """The case of a text whose sizes the extension's parser refuses with `error`."""
    match = _SIZES.fullmatch(text)
    if not match or match["dtype"] not in DTYPES:
        raise error
    kind = {"maxpool": "max", "avgpool": "avg"}.get(match["kind"], "conv")
    flags = match["flags"].split()
    if "adaptive" in flags or (match["pass"] == "grad_input" and "bias" in flags):
        raise error
    fields = {"kind": kind, "dtype": match["dtype"], **{key: int(match[key]) for key in "nchwrs"}}
    for word, names in (("stride", ("stride_h", "stride_w")), ("dilation", ("dilation_h", "dilation_w"))):
        fields |= zip(names, _pair(match[word].split("x")), strict=True)
    pads = _pair(re.split("[x,]", match["pad"]))
    fields |= zip(("pad_top", "pad_left"), pads[:2], strict=True)
    if kind == "conv":
        fields |= zip(("pad_bottom", "pad_right"), pads[-2:], strict=True)
        fields |= {"k": int(match["k"]), "groups": int(match["groups"]), "bias": "bias" in flags, "residual": False}
        word = next((flag for flag in flags if flag.partition(":")[0] in g.ACTIVATIONS), "none")
        fields |= g.parse_activation(word)
        if match["pass"] != "fwd" and activations.needs_input(fields):
            raise error
    else:
        fields["ceil_mode"] = "ceil" in flags
    return Case("", "problem", fields, match["pass"], (match["layout"],))


def _pair(words):
    return [int(word) for word in (words * 2 if len(words) == 1 else words)]
