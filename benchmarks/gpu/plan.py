"""What is measured in which order: a run has minutes, the full product of layers, batches and modes takes longer."""

from dataclasses import dataclass

from . import layers as tables

POOLS, CONVS = ("max", "avg"), ("conv",)
BATCHES = (1, 32, 128)


@dataclass(frozen=True)
class Group:
    """One layer at one batch in one mode: everything of it is measured together, in turns."""

    layer: tables.Distinct
    batch: int
    mode: str

    @property
    def kind(self):
        return self.layer.layer.kind

    def key(self):
        return self.layer.layer, self.layer.shape, self.batch, self.mode

    def words(self):
        return f"{self.layer.name()} n{self.batch} {self.mode}"


_MAIN, _OTHERS = ("vgg16", "resnet50"), ("alexnet", "googlenet", "xception", "alphago")

# (kinds, networks, how many of each network's weightiest layers or None for all, batch, modes), most wanted first.
# bf16 at batch 32 answers most questions; fp32 at batch 128 costs most time.
_STAGES = (
    (CONVS, _MAIN, None, 32, ("bf16",)),
    (POOLS, _MAIN + _OTHERS, None, 32, ("bf16", "fp32")),
    (CONVS, _MAIN, None, 32, ("tf32",)),
    (CONVS, _OTHERS, 8, 32, ("bf16",)),
    (CONVS, _MAIN, None, 32, ("fp32",)),
    (CONVS, _MAIN, None, 1, ("bf16",)),
    (CONVS, _MAIN, None, 128, ("bf16",)),
    (CONVS, _MAIN, 2, 1, ("fp64",)),
    (CONVS, _OTHERS, 5, 32, ("tf32", "fp32")),
    (CONVS, _MAIN, None, 32, ("fp16",)),
    (CONVS, _OTHERS, 5, 1, ("bf16",)),
    (CONVS, _OTHERS, 5, 128, ("bf16",)),
    (CONVS, _MAIN, None, 1, ("tf32", "fp32")),
    (POOLS, _MAIN + _OTHERS, None, 128, ("bf16", "fp32")),
    (CONVS, _MAIN, None, 128, ("tf32",)),
    (CONVS, _OTHERS, 5, 32, ("fp16",)),
    (CONVS, _OTHERS, None, 32, ("bf16",)),
    (POOLS, _MAIN + _OTHERS, None, 1, ("bf16", "fp32")),
    (CONVS, _MAIN, None, 128, ("fp32", "fp16")),
    (CONVS, _MAIN, None, 1, ("fp16",)),
)


def _stages(quick):
    if quick:
        return (
            (CONVS, _MAIN + _OTHERS, 2, 2, ("bf16", "tf32", "fp32", "fp16", "fp64")),
            (POOLS, _MAIN + _OTHERS, 2, 2, ("bf16", "fp32")),
        )
    rest = [
        (kinds, _MAIN + _OTHERS, None, batch, (mode,))
        for mode in ("bf16", "tf32", "fp32", "fp16")
        for batch in (32, 1, 128)
        for kinds in (CONVS, POOLS)
        if kinds is CONVS or mode != "tf32"  # pools multiply nothing
    ]
    return (*_STAGES, *rest)


def groups(networks, modes, batches=None, quick=False):
    """All groups of these networks, modes and batches (None for all), the most wanted first, each once."""
    known = {kinds: tables.distinct(kinds, quick) for kinds in (CONVS, POOLS)}
    found = {}
    for kinds, of, count, batch, stage_modes in _stages(quick):
        if batches and batch not in batches:
            continue
        for mode in stage_modes:
            for network in of:
                if network in networks and mode in modes:
                    for layer in tables.leading(known[kinds], network, count):
                        group = Group(layer, batch, mode)
                        found.setdefault(group.key(), group)
    return list(found.values())
