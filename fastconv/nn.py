"""Drop-in modules: subclasses of their torch.nn namesakes that run fastconv's kernels.

Constructor arguments, parameters, `state_dict`, pickling and errors are torch's, because the torch classes do that
work; only the call of the kernel is replaced. `algorithm` is the one extra keyword: "auto", or the name of a row of
the algorithm table, which then either runs or raises with every row's reason.
"""

import torch
import torch.nn.functional as F

from . import _activations as activations
from . import functional as FF
from ._support import use_torch

__all__ = [
    "Conv2d",
    "ConvReLU2d",
    "ConvTranspose2d",
    "MaxPool2d",
    "AvgPool2d",
    "LPPool2d",
    "AdaptiveMaxPool2d",
    "AdaptiveAvgPool2d",
]


def _check_algorithm(algorithm):
    if not isinstance(algorithm, str):
        raise TypeError(f"algorithm must be a str, but got {type(algorithm).__name__}")


def _with_algorithm(module, text):
    return text if module.algorithm == "auto" else f"{text}, algorithm={module.algorithm!r}"


class Conv2d(torch.nn.Conv2d):
    """2-D convolution: input (N, C, H, W) or (C, H, W) -> (N, K, P, Q) or (K, P, Q).

    P = (H + pad_top + pad_bottom - dilation * (kernel - 1) - 1) // stride + 1, Q alike. All arguments are those of
    torch.nn.Conv2d, `padding='same' | 'valid'` and the padding modes 'reflect', 'replicate' and 'circular' (padded by
    `torch.nn.functional.pad`, as torch does) included. The output is channels_last if the input or the weight is.

    Args:
        algorithm: "auto", or the name of a convolution row (see `fastconv.doctor()`).

    Raises:
        ValueError, RuntimeError, TypeError: as torch.nn.Conv2d does for the same argument;
        RuntimeError if the forced `algorithm` refuses the problem or no row supports it.
    """

    # Defaults on the class: modules whose class was exchanged by `convert`, and old pickles, carry no such attributes.
    algorithm = "auto"
    _fastconv_fallback = "error"
    _activation = None

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size,
        stride=1,
        padding=0,
        dilation=1,
        groups=1,
        bias=True,
        padding_mode="zeros",
        device=None,
        dtype=None,
        *,
        algorithm="auto",
    ):
        _check_algorithm(algorithm)
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )
        self.algorithm = algorithm

    def _conv_forward(self, input, weight, bias):
        return self._convolve(input, weight, bias, self._activation)

    def _convolve(self, input, weight, bias, activation):
        if use_torch("conv", self._fastconv_fallback, input):
            output = super()._conv_forward(input, weight, bias)
            return output if activation is None else activations.apply(activation, output)
        padding = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        return FF.conv2d(
            input,
            weight,
            bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            activation=activation,
            algorithm=self.algorithm,
        )

    def extra_repr(self):
        return _with_algorithm(self, super().extra_repr())


class ConvReLU2d(Conv2d):
    """relu(conv(x)) in one pass over the output; shapes, arguments and errors are those of `Conv2d`.

    Backward needs the output only: its mask is !(output <= 0), so that NaN passes as in torch. The parameters are
    the convolution's own `weight` and `bias`: a state_dict fits a torch.nn.Conv2d.
    """

    _activation = "relu"


class ConvTranspose2d(torch.nn.ConvTranspose2d):
    """2-D transposed convolution: input (N, C, H, W) or (C, H, W) -> (N, K, P, Q) or (K, P, Q), arguments as torch.

    P = (H - 1) * stride - 2 * padding + dilation * (kernel - 1) + output_padding + 1, Q alike; `forward`'s
    `output_size` chooses output_padding, as in torch.

    Args:
        algorithm: "auto", or the name of a convolution row (see `fastconv.doctor()`).

    Raises: what torch.nn.ConvTranspose2d raises for the same argument; RuntimeError as of `Conv2d`.
    """

    algorithm = "auto"
    _fastconv_fallback = "error"

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size,
        stride=1,
        padding=0,
        output_padding=0,
        groups=1,
        bias=True,
        dilation=1,
        padding_mode="zeros",
        device=None,
        dtype=None,
        *,
        algorithm="auto",
    ):
        _check_algorithm(algorithm)
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            output_padding,
            groups,
            bias,
            dilation,
            padding_mode,
            device,
            dtype,
        )
        self.algorithm = algorithm

    def forward(self, input, output_size=None):
        if self.padding_mode != "zeros" or use_torch("conv", self._fastconv_fallback, input):
            return super().forward(input, output_size)
        output_padding = self._output_padding(
            input, output_size, self.stride, self.padding, self.kernel_size, 2, self.dilation
        )
        return FF.conv_transpose2d(
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            output_padding,
            self.groups,
            self.dilation,
            algorithm=self.algorithm,
        )

    def extra_repr(self):
        return _with_algorithm(self, super().extra_repr())


class MaxPool2d(torch.nn.MaxPool2d):
    """2-D max-pooling: input (N, C, H, W) or (C, H, W) -> (N, C, P, Q) or (C, P, Q), arguments as torch.

    A window that lies wholly in padding gives -inf as in torch, but sends no gradient (torch's writes out of bounds),
    and its index is documented in `FF.max_pool2d`.

    Raises: what torch.nn.MaxPool2d raises for the same argument.
    """

    _fastconv_fallback = "error"

    def forward(self, input):
        if use_torch("pool", self._fastconv_fallback, input):
            return super().forward(input)
        return FF.max_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            ceil_mode=self.ceil_mode,
            return_indices=self.return_indices,
        )


class AvgPool2d(torch.nn.AvgPool2d):
    """2-D average-pooling: input (N, C, H, W) or (C, H, W) -> (N, C, P, Q) or (C, P, Q), arguments as torch.

    Raises: what torch.nn.AvgPool2d raises for the same argument.
    """

    _fastconv_fallback = "error"

    def forward(self, input):
        if use_torch("pool", self._fastconv_fallback, input):
            return super().forward(input)
        return FF.avg_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )


class LPPool2d(torch.nn.LPPool2d):
    """2-D power-average pooling: input (N, C, H, W) or (C, H, W) -> (N, C, P, Q) or (C, P, Q), see `FF.lp_pool2d`.

    Raises: what torch.nn.LPPool2d raises for the same argument.
    """

    _fastconv_fallback = "error"

    def forward(self, input):
        if use_torch("pool", self._fastconv_fallback, input):
            return super().forward(input)
        return FF.lp_pool2d(input, float(self.norm_type), self.kernel_size, self.stride, self.ceil_mode)


class AdaptiveMaxPool2d(torch.nn.AdaptiveMaxPool2d):
    """2-D max-pooling to a given output size: input (N, C, H, W) or (C, H, W), see `FF.adaptive_max_pool2d`.

    Raises: what torch.nn.AdaptiveMaxPool2d raises for the same argument.
    """

    _fastconv_fallback = "error"

    def forward(self, input):
        if use_torch("pool", self._fastconv_fallback, input):
            return super().forward(input)
        return FF.adaptive_max_pool2d(input, self.output_size, self.return_indices)


class AdaptiveAvgPool2d(torch.nn.AdaptiveAvgPool2d):
    """2-D average-pooling to a given output size: input (N, C, H, W) or (C, H, W), see `FF.adaptive_avg_pool2d`.

    Raises: what torch.nn.AdaptiveAvgPool2d raises for the same argument.
    """

    _fastconv_fallback = "error"

    def forward(self, input):
        if use_torch("pool", self._fastconv_fallback, input):
            return super().forward(input)
        return FF.adaptive_avg_pool2d(input, self.output_size)
