"""Many rows in few numbers: geometric means of ratios by kind of layer and by network. What the README, the page and
the plots of a recording have in common."""

import math
from dataclasses import dataclass

from . import measure
from .networks import NETWORKS
from .rows import FASTCONV

GROUPS = {
    "3x3 convolutions, stride 1": lambda f: _conv(f) and _window(f) == (3, 3) and _stride(f) == (1, 1),
    "1x1 convolutions": lambda f: _conv(f) and _window(f) == (1, 1),
    "other convolutions": lambda f: _conv(f),
    "depthwise convolutions": lambda f: f["kind"] == "conv" and f["groups"] == f["c"] > 1,
    "transposed convolutions": lambda f: f["kind"] == "conv_transpose",
    "max-pools": lambda f: f["kind"] == "max",
    "average pools": lambda f: f["kind"] == "avg",
    "LP pools": lambda f: f["kind"] == "lp",
}


def _conv(fields):
    return fields["kind"] == "conv" and not fields["groups"] == fields["c"] > 1


def _window(fields):
    return fields["r"], fields["s"]


def _stride(fields):
    return fields["stride_h"], fields["stride_w"]


def group_of(row):
    """The first of GROUPS that the row belongs to; None for linear layers."""
    return next((name for name, holds in GROUPS.items() if row["kind"] != "linear" and holds(row["fields"])), None)


@dataclass(frozen=True, order=True)
class Setup:
    """What rows must share to be summed up."""

    malloc: str
    direction: str
    batch: int
    threads: int

    def words(self, malloc=False):
        does = {"fwd": "forward", "train": "training"}.get(self.direction, self.direction)
        text = f"{does}, batch {self.batch}, {self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"{text}, {self.malloc} malloc" if malloc else text


def setup_of(row):
    """Of a row, or of a whole network."""
    return Setup(row["malloc"], row["pass"], row["batch"], row["threads"])


def setups(data):
    """Every Setup in the results, in the order of their rows."""
    return list(dict.fromkeys(setup_of(row) for row in (*data["rows"], *data["whole_network"])))


def ratio_of(row):
    """PyTorch's or the best peer's time over fastconv's, each in its better layout; None if a side has no time."""
    found = (row["speed"] or {}).get("ratio")
    return found["median"] if found else None


def ratio_within(row, layout):
    """The same of both sides in one layout, PyTorch's eager calls only."""
    samples = [row["samples"].get(side, {}).get(layout) for side in ("torch", FASTCONV)]
    return measure.ratio(*samples)["median"] if all(samples) else None


def layers_of(row):
    """[[network, layer]] of those that have this problem."""
    return row["layers"] or [[row["source"], row["name"]]]


@dataclass(frozen=True)
class Mean:
    """The geometric mean of some ratios, the smallest, the largest, how many."""

    mean: float
    low: float
    high: float
    count: int

    def words(self):
        return f"{self.mean:.2f} ({self.low:.2f} to {self.high:.2f})" if self.count > 1 else f"{self.mean:.2f}"


def mean(ratios):
    """None of no ratios."""
    known = [ratio for ratio in ratios if ratio]
    if not known:
        return None
    return Mean(math.exp(sum(map(math.log, known)) / len(known)), min(known), max(known), len(known))


def by_group(data):
    """{group: {Setup: Mean}}; a problem counts once, however many layers have it."""
    found = {}
    for row in data["rows"]:
        found.setdefault(group_of(row), {}).setdefault(setup_of(row), []).append(ratio_of(row))
    return {name: _means(found[name]) for name in GROUPS if name in found}


def by_network(data):
    """{network: {Setup: Mean}}; each layer counts."""
    found = {}
    for row in data["rows"]:
        for network, _ in layers_of(row):
            if row["kind"] != "linear":
                found.setdefault(network, {}).setdefault(setup_of(row), []).append(ratio_of(row))
    return {network: _means(each) for network, each in found.items()}


def _means(each):
    return {setup: found for setup, ratios in each.items() if (found := mean(ratios))}


def whole(data):
    """{network: {Setup: PyTorch's time over fastconv's, end to end}}"""
    found = {}
    for one in data["whole_network"]:
        ratio = one["ratio"].get("fastconv auto")
        if ratio:
            found.setdefault(one["network"], {})[setup_of(one)] = ratio["median"]
    return found


def title(network):
    """'VGG-16 (configuration D)' -> 'VGG-16'"""
    return NETWORKS[network].title.partition(" (")[0].partition(",")[0] if network in NETWORKS else network


def main_setups(data):
    """At most four for a short table: forward with the least batch and threads, then with all threads, then in batches,
    and training in batches with all threads. Default malloc, if that was measured."""
    there = setups(data)
    malloc = "default" if any(setup.malloc == "default" for setup in there) else there[0].malloc
    there = [setup for setup in there if setup.malloc == malloc]
    least, most = ({key: of(getattr(s, key) for s in there) for key in ("batch", "threads")} for of in (min, max))
    wanted = [
        Setup(malloc, "fwd", least["batch"], least["threads"]),
        Setup(malloc, "fwd", least["batch"], most["threads"]),
        Setup(malloc, "fwd", most["batch"], most["threads"]),
        Setup(malloc, "train", most["batch"], most["threads"]),
    ]
    return [setup for setup in dict.fromkeys(wanted) if setup in there] or there[:4]
