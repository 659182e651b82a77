"""A row of the report: one case with one algorithm, what it is, whether it passed, how fast every side was."""

from dataclasses import dataclass, field

from . import formulas as f
from . import measure
from .machine import MATH, malloc

FASTCONV = "fastconv"
# What `check` begins with; the first two are no failures.
OK, REFUSED, FAILED, IMPOSSIBLE, NOT_REACHED = "ok", "refused", "failed", "impossible", "not reached"


@dataclass
class Row:
    """choices: layout -> contestants.choices. saved_bytes: side -> bytes. peak_bytes, errors, samples: side -> layout
    -> bytes, one error for each result, seconds. unable, wrong: peer -> why it does not run, or fails its check.
    facts: flops, macs, minimum_bytes of all passes together. texts: layout -> the first pass's problem. layers:
    [network, layer] of those that have this problem, where several networks were measured at once."""

    case: object
    asked: str  # the algorithm that was asked for; "auto" leaves the choice to fastconv
    threads: int
    accuracy: str
    facts: dict = field(default_factory=dict)
    texts: dict = field(default_factory=dict)
    choices: dict = field(default_factory=dict)
    saved_bytes: dict = field(default_factory=dict)
    peak_bytes: dict = field(default_factory=dict)
    errors: dict = field(default_factory=dict)
    unable: dict = field(default_factory=dict)
    wrong: dict = field(default_factory=dict)
    check: str = NOT_REACHED  # or OK, or one of the other words, a colon and the reason
    samples: dict = field(default_factory=dict)
    layers: list = field(default_factory=list)

    def label(self):
        name = self.case.name or self.case.kind
        return name if self.asked == "auto" else f"{name} [{self.asked}]"

    def passed(self):
        return self.check == OK

    def failed(self):
        """Whether the exit status must tell: a wrong output, a peer's too, or a problem that cannot be run."""
        return self.check.startswith((FAILED, IMPOSSIBLE)) or bool(self.wrong)

    def linear(self):
        return self.case.kind == "linear"

    def timed(self, side):
        return side in self.samples and all(self.samples[side].values())

    def measured(self):
        """Whether there is a time to show: of fastconv, or of any side for layers that are not fastconv's."""
        return self.passed() and (bool(self.peers()) if self.linear() else self.timed(FASTCONV))

    def peers(self):
        return [side for side in self.samples if side != FASTCONV and self.timed(side)]

    def best(self, side):
        """(layout, samples) of the side's faster layout by medians."""
        timed = self.samples[side]
        layout = min(timed, key=lambda name: measure.summary(timed[name])["median"])
        return layout, timed[layout]

    def best_peer(self):
        """The fastest side beside fastconv's; None if no other was timed."""
        return min(self.peers(), key=lambda side: measure.summary(self.best(side)[1])["median"], default=None)

    def spread(self):
        """The larger spread of the shown sides' samples."""
        shown = [side for side in (FASTCONV, self.best_peer()) if side and self.timed(side)]
        return max(measure.spread(self.best(side)[1]) for side in shown)

    def layout(self):
        """The layout of fastconv that a reader is shown: the faster one; the first where nothing was measured."""
        return self.best(FASTCONV)[0] if self.passed() and self.timed(FASTCONV) else self.case.layouts[0]

    def chosen(self):
        return self.choices.get(self.layout(), [])

    def problem(self):
        """The canonical text of the (first) problem; '' where there is none."""
        return self.chosen()[0]["problem"] if self.chosen() else self.texts.get(self.layout(), "")

    def workspace(self):
        return max(c["workspace_bytes"] for c in self.chosen()) if self.chosen() else None

    def executed_macs(self):
        return sum(c["executed_macs"] for c in self.chosen()) if self.chosen() else None

    def intensity(self):
        """FLOPs per byte of least traffic."""
        return self.facts["flops"] / self.facts["minimum_bytes"] if self.facts.get("minimum_bytes") else None

    def worst(self, side, layout=None):
        """The largest error among a side's results in a layout, the shown one by default; None if it did not run."""
        found = self.errors.get(side, {})
        layout = layout or (self.best(side)[0] if self.timed(side) else next(iter(found), None))
        return max(found[layout], default=None) if layout in found else None

    def peak(self, side):
        found = self.peak_bytes.get(side, {})
        return found.get(self.best(side)[0] if self.timed(side) else next(iter(found), None))

    def speed(self, peaks):
        """Derived figures of a measured row; None for another one. `peaks`: machine.peaks() of the row's threads."""
        if not self.measured():
            return None
        sides = {side: self._figures(side, peaks) for side in (*self.peers(), FASTCONV) if self.timed(side)}
        best = self.best_peer()
        ratio = None
        if FASTCONV in sides and best:
            ratio = measure.ratio(self.best(best)[1], self.best(FASTCONV)[1])
        return {"sides": sides, "best_peer": best, "ratio": ratio}

    def _figures(self, side, peaks):
        layout, samples = self.best(side)
        seconds = measure.summary(samples)["median"]
        flops, moved = self.facts["flops"], self.facts["minimum_bytes"]
        roof = f.roofline_seconds(flops, moved, peaks["flops_per_second"][self.case.dtype], peaks["bytes_per_second"])
        return {
            "layout": layout,
            **measure.summary(samples),
            "spread": measure.spread(samples),
            "gflops": flops / seconds / 1e9,
            "gbytes_per_second": moved / seconds / 1e9,
            "roofline": roof / seconds,
        }

    def as_json(self, peaks):
        case = self.case
        return {
            "name": case.name,
            "source": case.source,
            "kind": case.kind,
            "pass": case.direction,
            "dtype": case.dtype,
            "math": MATH[case.dtype],
            "batch": case.fields["n"],
            "layouts": case.layouts,
            "fields": case.fields,
            "threads": self.threads,
            "malloc": malloc(),
            "layers": self.layers,
            "accuracy": self.accuracy,
            "algorithm_asked": self.asked,
            "problem": self.problem(),
            "layout": self.layout(),
            "algorithm": [c["algorithm"] for c in self.chosen()],
            "why": [c["why"] for c in self.chosen()],
            "choices": self.choices,
            "flops": self.facts.get("flops"),
            "macs": self.facts.get("macs"),
            "executed_macs": self.executed_macs(),
            "minimum_bytes": self.facts.get("minimum_bytes"),
            "arithmetic_intensity": self.intensity(),
            "workspace_bytes": self.workspace(),
            "saved_bytes": self.saved_bytes,
            "peak_bytes": self.peak_bytes,
            "check": self.check,
            "errors": self.errors,
            "peers_unable": self.unable,
            "peers_wrong": self.wrong,
            "speed": self.speed(peaks) if peaks else None,
            "samples": self.samples if self.passed() else {},
        }


def facts_of(case, extension):
    """{"flops", "macs", "minimum_bytes"} of a case's passes together.

    Raises:
        ValueError: there is no such problem.
    """
    if case.kind == "linear":
        n, inputs, outputs = (case.fields[key] for key in ("n", "c", "k"))
        passes = len(case.passes())
        macs = f.linear_macs(n, inputs, outputs) * passes
        # each pass moves the three matrices once
        moved = (n * inputs + f.linear_parameters(inputs, outputs, case.fields["bias"]) + n * outputs) * f.FLOAT
        return {"flops": f.flops(macs), "macs": macs, "minimum_bytes": moved * passes}
    each = [extension.problem_facts(text) for _, text in case.problems("nchw")]
    return {key: sum(facts.get(key, 0) for facts in each) for key in ("flops", "macs", "minimum_bytes")}
