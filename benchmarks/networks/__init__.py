"""The networks that the benchmarks know, by name. A new one is a description in a file here and a line in `_ALL`."""

import difflib

from .alexnet import ALEXNET, ALEXNET_UNGROUPED
from .alphago import ALPHAGO
from .bn_inception import BN_INCEPTION, SE_INCEPTION
from .courses import COURSE, COURSE_SAME
from .edge_detection import EDGE_DETECTION
from .fcn import FCN8S
from .googlenet import GOOGLENET
from .inception_v4 import INCEPTION_V4
from .lenet5 import LENET5
from .resnet import RESNET18, RESNET34, RESNET50, RESNET101, RESNET152, SE_RESNET50
from .vgg import VGG11, VGG13, VGG16, VGG16_C, VGG19
from .vit import VIT_PATCHES
from .xception import XCEPTION
from .zfnet import ZFNET

_ALL = (
    *(LENET5, ALEXNET, ALEXNET_UNGROUPED, ZFNET),
    *(VGG11, VGG13, VGG16_C, VGG16, VGG19),
    *(GOOGLENET, BN_INCEPTION, INCEPTION_V4, XCEPTION),
    *(RESNET18, RESNET34, RESNET50, RESNET101, RESNET152),
    *(SE_RESNET50, SE_INCEPTION),
    *(FCN8S, ALPHAGO, VIT_PATCHES),
    *(COURSE, COURSE_SAME, EDGE_DETECTION),
)
NETWORKS = {network.name: network for network in _ALL}


def nearest(word, known):
    """The names of `known` that `word` may have meant, at most three, best first; all of them if none is near. A name's
    beginning counts almost as much as all of it: "alexnt" is near to alexnet-ungrouped too."""
    word = word.lower()

    def likeness(name):
        ratios = [difflib.SequenceMatcher(None, word, part).ratio() for part in (name, name[: len(word)])]
        return max(ratios[0], 0.95 * ratios[1])

    near = sorted((name for name in known if likeness(name) >= 0.4), key=likeness, reverse=True)
    return near[:3] or list(known)
