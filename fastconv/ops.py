"""Loads the extension and completes its operators: shapes, derivatives, vmap rules, FLOP counts.

The operators are this module's attributes: `ops.conv2d` is `torch.ops.fastconv.conv2d.default`, and so on. The first
access loads the extension and raises `ExtensionError`, with the cure, if that is impossible. Importing fastconv tries
at once, so that graphs saved with torch.export find their operators, but never fails.

Beside each operator stands `eager_<name>`, the short way for plain eager calls (see csrc/bindings/eager.cpp): the
operator's result, or None where the call must go through torch's dispatcher. The `functional_` ones take the
arguments as functional.py does, e.g. a single int as stride. `convolution_algorithms` are the names that can be forced.
"""

from functools import partial

import torch

from . import _extension

OPERATORS = (
    "conv2d",
    "conv2d_max_pool2d",
    "conv2d_batch_norm",
    "conv2d_grad_input",
    "conv2d_grad_weight",
    "conv_transpose2d",
    "max_pool2d",
    "max_pool2d_values",
    "max_pool2d_backward",
    "max_pool2d_gather",
    "max_pool2d_indices",
    "avg_pool2d",
    "avg_pool2d_backward",
    "adaptive_max_pool2d",
    "adaptive_max_pool2d_values",
    "adaptive_max_pool2d_backward",
    "adaptive_max_pool2d_gather",
    "adaptive_max_pool2d_indices",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool2d_backward",
    "lp_pool2d",
    "lp_pool2d_backward",
)

SHORT_WAYS = (
    "functional_conv2d",
    "functional_conv2d_max_pool2d",
    "functional_conv2d_batch_norm",
    "functional_conv_transpose2d",
    "functional_max_pool2d",
    "functional_avg_pool2d",
    "functional_adaptive_max_pool2d",
    "functional_adaptive_avg_pool2d",
    "functional_lp_pool2d",
    *(f"eager_{name}" for name in OPERATORS),
)

_loaded = None


def extension():
    """The compiled module fastconv._C. Raises ExtensionError if it is missing or was built for another torch."""
    global _loaded
    if _loaded is None:
        module = _extension.load()
        try:
            found = {name: getattr(torch.ops.fastconv, name).default for name in OPERATORS}
            found.update({name: getattr(module, name) for name in SHORT_WAYS})
        except AttributeError as missing:
            raise _extension.ExtensionError(
                f"fastconv: the compiled extension does not belong to this Python code ({missing}); "
                f"rebuild: {_extension.rebuild_command()}"
            ) from None
        globals().update(found)
        rows = [row for row in module.algorithms() if row["kind"] == "conv"]
        globals()["convolution_algorithms"] = tuple(dict.fromkeys(row["name"] for row in rows))
        _complete()
        _loaded = module
    return _loaded


def _complete():
    from torch.utils.flop_counter import register_flop_formula

    from . import _shapes, _vmap, autograd

    for name in OPERATORS:
        operator = globals()[name]
        torch.library.register_fake(operator, _shapes.FAKES[name])
        torch.library.register_vmap(operator, partial(_vmap.RULES[name], operator))
        formula = autograd.FORMULAS.get(name)
        if formula is not None:
            torch.library.register_autograd(operator, formula.backward, setup_context=formula.setup_context)
    for name, count in _shapes.FLOPS.items():
        register_flop_formula(getattr(torch.ops.fastconv, name))(count)


def __getattr__(name):
    if name in (*OPERATORS, *SHORT_WAYS, "convolution_algorithms"):
        extension()
        return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
