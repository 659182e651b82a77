"""What a recording consists of: parts, each small enough to lose, and who has which problem.

A part is the layers or the whole of one network, in one pass, batch and setting of malloc, with every number of
threads. A problem that several layers have is measured once, as the first one's.
"""

import itertools
from dataclasses import dataclass

from . import networks
from .cases import fields_of
from .record_names import DIRECTIONS, MALLOCS, NETWORKS

# For predictions only, until parts have been measured: FLOP/s of a core, calls of a case, seconds that a case costs
# whatever its size (checks, short calls), seconds that a network takes to build.
_RATE, _CALLS, _CASE, _BUILD = 100e9, 20, 0.4, 1.5


@dataclass(frozen=True)
class Part:
    malloc: str
    direction: str  # "fwd" or "train"
    batch: int
    network: str
    what: str  # "layers" or "whole"

    def key(self):
        return f"{self.malloc}-{self.direction}-n{self.batch}-{self.network}-{self.what}"

    def words(self):
        does = "forward" if self.direction == "fwd" else "training"
        return f"{self.network}, {self.what}, batch {self.batch}, {does}, {self.malloc} malloc"


@dataclass(frozen=True)
class Settings:
    """most_seconds: after this long, two rounds of a case suffice. Unless `thorough`, tuned malloc, and in batches
    whole networks and training, are measured with the most threads only, and memory with the smallest batch."""

    networks: tuple = NETWORKS
    batches: tuple = (1, 8)
    threads: tuple = (1, 2)
    mallocs: tuple = MALLOCS
    directions: tuple = DIRECTIONS
    accuracy: str = "fast"
    seed: int = 0
    runs: int = 5
    seconds: float = 0.5
    most_seconds: float = 20.0
    thorough: bool = True

    def parts(self):
        """In order of importance: what a budget of time leaves out stands at the end."""
        stages = itertools.product(self.mallocs, self.directions, self.batches)
        return [Part(*stage, name, what) for stage in stages for name in self.networks for what in ("layers", "whole")]

    def threads_of(self, part):
        batched = part.batch > min(self.batches) and (part.what == "whole" or part.direction == "train")
        most_only = not self.thorough and (part.malloc != "default" or batched)
        return (max(self.threads),) if most_only else self.threads

    def looks_at_memory(self, part):
        """What malloc does is not the sides' doing, and a training step's whole has more than its layers."""
        small = self.thorough or part.batch == min(self.batches)
        return part.malloc == "default" and small and (part.what == "layers" or part.direction == "fwd")


def users(settings, part):
    """{layer that is measured: [[network, layer] of all that have its problem]} of a part about layers."""
    training, found = part.direction == "train", {}
    for name in settings.networks:
        first = True
        for layer, before, _ in networks.NETWORKS[name].walk(training):
            if layer.kind == "linear":
                continue
            # the first layer's input wants no gradient: another step of training
            key = (*sorted(fields_of(layer, before, part.batch).items()), training and first)
            found.setdefault(key, []).append([name, layer.name])
            first = False
    return {layers[0][1]: layers for layers in found.values() if layers[0][0] == part.network}


def predicted_seconds(settings, part):
    """A rough guess; what counts is how parts compare."""
    network, training = networks.NETWORKS[part.network], part.direction == "train"
    measured = users(settings, part) if part.what == "layers" else {}
    layers = [(layer, before) for layer, before, _ in network.walk(training)]
    if part.what == "layers":
        layers = [(layer, before) for layer, before in layers if layer.name in measured]
    flops = sum(layer.flops(before, part.batch) for layer, before in layers) * (3 if training else 1)
    counts = settings.threads_of(part)
    per_call = sum(flops / (_RATE * threads) for threads in counts)
    cases = len(layers) if part.what == "layers" else 1
    return per_call * _CALLS + cases * len(counts) * (_CASE + settings.seconds) + _BUILD
