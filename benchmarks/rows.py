"""A row of the report: one layer with one algorithm, what it is, whether it passed, how fast it was."""

from dataclasses import dataclass, field

from . import formulas as f
from . import measure, peers


@dataclass
class Row:
    layer: str
    kind: str
    asked: str  # the algorithm that was asked for; "auto" leaves the choice to fastconv
    macs: int
    flops: int
    parameters: int
    activation_bytes: int
    input_bytes: int
    minimum_bytes: int
    choices: dict = field(default_factory=dict)  # layout -> peers.choices
    saved_bytes: dict = field(default_factory=dict)  # side -> bytes
    errors: dict = field(default_factory=dict)  # side -> layout -> one for each result
    check: str = "not reached"  # "ok", "failed: ...", "refused: ...", "not reached"
    samples: dict = field(default_factory=dict)  # side -> layout -> seconds

    def passed(self):
        return self.check == "ok"

    def failed(self):
        return self.check.startswith("failed")

    def measured(self):
        return self.passed() and all(side in self.samples and all(self.samples[side].values()) for side in self.sides())

    def sides(self):
        return ("torch",) if self.kind == "linear" else peers.SIDES

    def best(self, side):
        """(layout, samples) of the faster layout by medians."""
        timed = self.samples[side]
        layout = min(timed, key=lambda name: measure.summary(timed[name])["median"])
        return layout, timed[layout]

    def spread(self):
        """The larger spread of the sides' shown samples."""
        return max(measure.spread(self.best(side)[1]) for side in self.sides())

    def layout(self):
        """The layout of fastconv that a reader is shown: the faster one, NCHW where nothing was measured."""
        return self.best("fastconv")[0] if self.measured() and self.kind != "linear" else "nchw"

    def speed(self, peaks):
        """Derived figures of a measured row; None for another one."""
        if not self.measured():
            return None
        figures = {}
        for side in self.sides():
            layout, samples = self.best(side)
            seconds = measure.summary(samples)["median"]
            roof = f.roofline_seconds(
                self.flops, self.minimum_bytes, peaks["flops_per_second"], peaks["bytes_per_second"]
            )
            figures[side] = {
                "layout": layout,
                **measure.summary(samples),
                "gflops": self.flops / seconds / 1e9,
                "gbytes_per_second": self.minimum_bytes / seconds / 1e9,
                "roofline": roof / seconds,
            }
        if "fastconv" in figures:
            figures["ratio"] = measure.ratio(self.best("torch")[1], self.best("fastconv")[1])
        return figures

    def worst(self, side, layout):
        """The largest error among a side's results; None if it did not run."""
        return max(self.errors[side][layout], default=None) if layout in self.errors.get(side, {}) else None

    def as_json(self, peaks):
        return {
            "layer": self.layer,
            "kind": self.kind,
            "algorithm_asked": self.asked,
            "layout": self.layout(),
            "choices": self.choices,
            "macs": self.macs,
            "flops": self.flops,
            "parameters": self.parameters,
            "activation_bytes": self.activation_bytes,
            "minimum_bytes": self.minimum_bytes,
            "saved_bytes": self.saved_bytes,
            "workspace_bytes": self.workspace(),
            "check": self.check,
            "errors": self.errors,
            "speed": self.speed(peaks),
            "samples": self.samples if self.passed() else {},
        }

    def workspace(self):
        chosen = self.choices.get(self.layout())
        return max(c["workspace_bytes"] for c in chosen) if chosen else None


def row_of(layer, before, after, batch, training, first, asked):
    """The row with everything that follows from the description."""
    x, y, parameters = batch * f.elements(before), batch * f.elements(after), layer.parameters(before)
    passes = peers.directions(layer, training, first)
    offsets = layer.offset_bytes() if training and layer.kind == "max" else 0
    least = f.layer_bytes(x, parameters, y, offsets)
    if layer.kind in ("max", "avg"):
        least += f.layer_bytes(x, 0, y, offsets) if len(passes) > 1 else 0
    else:
        bias = after[0] if layer.bias else 0
        for direction in passes[1:]:
            grad_bias = bias if direction == "grad_weight" else 0
            least += f.conv_gradient_bytes(x, parameters - bias, y, grad_bias, layer.relu)
    return Row(
        layer=layer.name,
        kind=layer.kind,
        asked=asked,
        macs=layer.macs(before, batch) * len(passes),
        flops=layer.flops(before, batch) * len(passes),
        parameters=parameters,
        activation_bytes=y * f.FLOAT,
        input_bytes=x * f.FLOAT,
        minimum_bytes=least,
    )
