"""Layers joined: `Branches` run side by side and meet, a `Head` leaves the trunk, a `Network` is the whole.

A tuple of layers and blocks is a sequence. The empty tuple is the identity: a residual block's plain shortcut.
Within a block names are short; from outside a layer is called by its path, "inception_3a.5x5", which is the name of
its module too.
"""

import dataclasses
from dataclasses import dataclass

from . import formulas as f
from .layers import Crop

WORKING = ("conv", "conv_transpose", "max", "avg", "linear")


@dataclass(frozen=True)
class Step:
    """A layer or a block in its place: its full name, the shapes before and after it, and whether no block is around
    it."""

    item: object
    path: str
    before: tuple
    after: tuple
    outermost: bool = True


@dataclass(frozen=True)
class Branches:
    """Paths that all take the block's input, and how their outputs meet.

    `join`: "concat" of channels, "add" (a residual block's body and shortcut), or "scale": the first path times the
    others, which have one number for each channel (squeeze-and-excitation). ReLU may follow in place. With `crop`,
    larger maps are cut to the smallest ones, `crop` rows and columns inside.
    """

    name: str
    paths: tuple
    join: str
    relu: bool = False
    crop: int | None = None

    @property
    def kind(self):
        return self.join

    def output_shape(self, shape):
        outputs = [shape_after(path, shape) for path in self.paths]
        if self.crop is not None:
            smallest = self.smallest(shape)
            outputs = [self.cropped(output, smallest).output_shape(output) for output in outputs]
        first, *others = outputs
        fitting = {
            "concat": lambda other: other[1:] == first[1:],
            "add": lambda other: other == first,
            "scale": lambda other: other in (first[:1], (first[0], 1, 1)),
        }[self.join]
        if not all(map(fitting, others)):
            raise ValueError(f"{self.name}: cannot {self.join} {', '.join(map(str, outputs))}")
        return (sum(c for c, *_ in outputs), *first[1:]) if self.join == "concat" else first

    def smallest(self, shape):
        """(height, width) of the smallest maps that meet."""
        sizes = [shape_after(path, shape)[1:] for path in self.paths]
        return tuple(map(min, zip(*sizes, strict=True)))

    def cropped(self, output, smallest):
        """The Crop that a path's output needs; at 0 if it is the smallest."""
        return Crop(f"{self.name} crop", smallest, 0 if output[1:] == smallest else self.crop)

    def words(self):
        text = {"concat": f"concat of {len(self.paths)}", "add": "add", "scale": "scale channels"}[self.join]
        text += f", cropped at {self.crop}" if self.crop is not None else ""
        return text + (" + ReLU" if self.relu else "")


@dataclass(frozen=True)
class Head:
    """Layers on the side of the trunk, for training only: an auxiliary classifier. The trunk goes on unchanged."""

    name: str
    layers: tuple
    kind = "head"

    def output_shape(self, shape):
        return shape

    def words(self):
        return "auxiliary head, in training only"


def concat(name, *paths):
    return Branches(name, _sequences(paths), "concat")


def residual(name, body, shortcut=()):
    return Branches(name, _sequences((body, shortcut)), "add", relu=True)


def scaled(name, *gate):
    """x times what `gate` makes of it, one number for each channel."""
    return Branches(name, ((), gate), "scale")


def _sequences(paths):
    return tuple(path if isinstance(path, tuple) else (path,) for path in paths)


def shape_after(items, shape):
    for item in items:
        shape = item.output_shape(shape)
    return shape


def inside(item):
    """The sequences that a block consists of; none of a layer."""
    if isinstance(item, Head):
        return (item.layers,)
    return item.paths if isinstance(item, Branches) else ()


def steps(items, shape, training=False, prefix=""):
    """Yield a Step for each layer and, before what is in it, each block; heads if `training`."""
    for item in items:
        path, after = prefix + item.name, item.output_shape(shape)
        if training or not isinstance(item, Head):
            yield Step(item, path, shape, after, outermost=not prefix)
            for inner in inside(item):
                yield from steps(inner, shape, training, f"{path}.")
        shape = after


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

    def steps(self, training=False):
        """Every layer and block as a Step, blocks before what is in them; auxiliary heads in training only."""
        return steps(self.layers, self.input_shape, training)

    def walk(self, training=False):
        """Yield (layer, input shape, output shape) of convolutions, pools and linear layers, in the order of execution.

        Each is as a kernel is asked for it (`as_run`) and bears its full name, which is its module's:
        `model.get_submodule(layer.name)`.
        """
        for step in self.steps(training):
            if step.item.kind in WORKING:
                layer = step.item.as_run(step.before, training)
                named = layer if layer.name == step.path else dataclasses.replace(layer, name=step.path)
                yield named, step.before, step.after

    def output_shape(self):
        return shape_after(self.layers, self.input_shape)

    def parameters(self, training=True):
        """Trained numbers; without `training`, those of auxiliary heads are not counted."""
        return sum(step.item.parameters(step.before) for step in self._leaves(training))

    def macs(self, batch=1, training=False):
        """Multiply-accumulates of a forward pass: convolutions and linear layers."""
        return sum(step.item.macs(step.before, batch) for step in self._leaves(training))

    def activations(self):
        """Elements per image that a forward pass makes: the input, every layer's and every join's output (ReLU works in
        place)."""
        return f.elements(self.input_shape) + sum(f.elements(step.after) for step in self.steps())

    def classifies(self):
        return len(self.output_shape()) == 1

    def _leaves(self, training):
        return (step for step in self.steps(training) if not isinstance(step.item, Branches | Head))
