"""The dtypes and math modes that are measured, and how torch is told to use them."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Mode:
    """`bound`: the largest ||y - reference|| / ||reference|| that passes, against float64 on the same inputs.

    float32 sums stay near 1e-6 and TF32 products near 3e-4, so that fp32's bound also shows that TF32 is off. float16
    rounds its results to 2e-4 and bfloat16 to 2e-3, root mean square; Winograd in float16 loses more.
    """

    name: str
    dtype: torch.dtype
    word: str  # in a problem's text
    bytes: int
    math: str  # "ieee" or "tf32"
    bound: float


MODES = {
    mode.name: mode
    for mode in (
        Mode("bf16", torch.bfloat16, "bf16", 2, "ieee", 1e-2),
        Mode("tf32", torch.float32, "f32", 4, "tf32", 2e-3),
        Mode("fp32", torch.float32, "f32", 4, "ieee", 3e-5),
        Mode("fp16", torch.float16, "f16", 2, "ieee", 5e-3),
        Mode("fp64", torch.float64, "f64", 8, "ieee", 1e-12),
    )
}


def set_math(mode, backends=torch.backends):
    """Set how cuDNN's convolutions and cuBLAS's products multiply float32. Returns the name of the interface used.

    Torch refuses to mix its two interfaces (reading allow_tf32 after setting fp32_precision raises), so allow_tf32 is
    touched only where the newer one does not exist (before torch 2.9). Some operators read the old one inside, which
    raises unless both are at torch's defaults: other dtypes, which this does not concern, get those.
    """
    is_float32 = mode.dtype == torch.float32
    conv, product = (mode.math, mode.math) if is_float32 else ("tf32", "ieee")
    if hasattr(backends.cudnn, "conv") and hasattr(backends.cudnn.conv, "fp32_precision"):
        backends.cudnn.conv.fp32_precision = conv
        backends.cuda.matmul.fp32_precision = product
        return "fp32_precision"
    backends.cudnn.allow_tf32 = conv == "tf32"
    backends.cuda.matmul.allow_tf32 = product == "tf32"
    return "allow_tf32"
