"""Words that a user may have meant."""

from . import networks

_MANY = 12


def did_you_mean(word, known):
    """'did you mean vgg16?', or what there is, or how to see it."""
    known = list(known)
    near = networks.nearest(word, known)
    if len(near) < len(known):
        return f"did you mean {' or '.join(near)}?"
    if len(known) <= _MANY:
        return f"there are {', '.join(known)}"
    return f"there are {', '.join(known[:_MANY])} and {len(known) - _MANY} more: python -m benchmarks list"
