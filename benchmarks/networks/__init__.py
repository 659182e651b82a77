"""The networks that the benchmarks know, by name. A new one is a description in a file here and a line in `_ALL`."""

import difflib

from .alexnet import ALEXNET, ALEXNET_UNGROUPED
from .edge_detection import EDGE_DETECTION
from .lenet5 import LENET5
from .vgg import VGG16

_ALL = (LENET5, ALEXNET, ALEXNET_UNGROUPED, VGG16, EDGE_DETECTION)
NETWORKS = {network.name: network for network in _ALL}


def nearest(word, known):
    """The names of `known` that `word` may have meant, best first; all of them if none is near."""
    return difflib.get_close_matches(word.lower(), known, n=3, cutoff=0.4) or list(known)
