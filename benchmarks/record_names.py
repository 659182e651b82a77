"""What a recording covers unless told otherwise; apart from the rest because the command line's help needs no torch."""

NETWORKS = ("vgg16", "resnet18", "resnet50", "googlenet", "alphago", "alexnet", "xception")
MALLOCS = ("default", "tuned")
DIRECTIONS = ("fwd", "train")
