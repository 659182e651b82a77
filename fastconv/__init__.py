"""fastconv: convolution and pooling layers for PyTorch with hand-written kernels.

    import fastconv
    model = fastconv.convert(model)          # torch.nn layers -> fastconv.nn layers
    print(fastconv.explain("conv n1c64h56w56 k64r3s3 st1 pd1 dl1 g1 f32 nchw fwd"))
    fastconv.doctor()                        # what was built, what runs here
"""

from . import functional, nn, ops
from ._extension import ExtensionError
from ._version import __version__
from .accuracy import get_accuracy, set_accuracy
from .convert import conversion_report, convert, unconvert
from .doctor import doctor
from .explanation import Explanation, explain
from .filter_cache import clear_filter_cache, filter_cache_info, freeze, set_filter_cache_limit, unfreeze
from .selection import algorithm
from .simulation import simulated_gpu

__all__ = [
    "Explanation",
    "ExtensionError",
    "__version__",
    "algorithm",
    "clear_filter_cache",
    "conversion_report",
    "convert",
    "doctor",
    "explain",
    "filter_cache_info",
    "freeze",
    "functional",
    "get_accuracy",
    "nn",
    "set_accuracy",
    "set_filter_cache_limit",
    "simulated_gpu",
    "unconvert",
    "unfreeze",
]

# Import never fails for want of the extension: the first use of an operator raises this error, which names the cure.
# Loading it now lets torch.export.load and torch.ops.fastconv find the operators after a bare `import fastconv`.
try:
    ops.extension()
except ExtensionError:
    pass
