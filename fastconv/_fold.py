"""BatchNorm folded into the convolution before it, in eval mode, without touching a parameter.

In eval mode BatchNorm2d is the affine map y -> y * s + (beta - mean * s) with s = gamma / sqrt(var + eps)
(Ioffe & Szegedy 2015, arXiv:1502.03167, section 3.1), so conv and BatchNorm are one convolution with the filter
weight * s and the bias beta + (bias - mean) * s.

Both modules stay where they are, with their own parameters and buffers. The convolution knows its BatchNorm; whenever
that one is in eval mode, the convolution does both and the BatchNorm passes its input through.

Where nobody wants a derivative, the kernels multiply their sums by s: the filter stays as it is, so that nothing is made
or kept beside it, and no change of a weight can go unnoticed. (A folded filter, kept and recognised by a hash of its
origins at each call, took ResNet-50's forward pass 19 of 100 ms.) With gradients, and inside transforms, the filter is
folded by ordinary operators.
"""

import torch
import torch.nn.functional as F

from . import functional as FF
from ._activations import apply, label
from ._arguments import may_differentiate
from ._support import use_torch
from .nn import Conv2d


def folds(batch_norm):
    """Does `batch_norm`, as it is now, use its running statistics? Both partners ask this at each call."""
    return not batch_norm.training and batch_norm.running_mean is not None and batch_norm.running_var is not None


def folded(weight, bias, batch_norm):
    """(weight, bias) of conv followed by `batch_norm` in eval mode. weight (K, C/groups, R, S), bias (K) or None.

    bf16 and fp16 are folded in fp32 and rounded once, as the unfolded pair rounds its result.
    """
    dtype = torch.float32 if weight.dtype in (torch.bfloat16, torch.float16) else weight.dtype
    scale = torch.rsqrt(batch_norm.running_var.to(dtype) + batch_norm.eps)
    if batch_norm.weight is not None:
        scale = scale * batch_norm.weight.to(dtype)
    mean = batch_norm.running_mean.to(dtype)
    offset = -mean if bias is None else bias.to(dtype) - mean
    offset = offset * scale if batch_norm.bias is None else torch.addcmul(batch_norm.bias.to(dtype), offset, scale)
    return (weight * scale[:, None, None, None]).to(weight.dtype), offset.to(weight.dtype)


class ConvBatchNorm2d(Conv2d):
    """The convolution of a conv -> BatchNorm2d pair. `_fastconv_norm` is a 1-tuple, so that the BatchNorm is not
    registered a second time: names and state_dict stay as they were.
    """

    def forward(self, input, residual=None):
        return self._conv_forward(input, self.weight, self.bias, residual)

    def _conv_forward(self, input, weight, bias, residual=None):
        norm = self._fastconv_norm[0]
        if not folds(norm):
            return self._convolve(input, weight, bias, None)
        if self._takes_norm(input, weight, bias, residual, norm):
            return FF.conv2d_batch_norm(
                input, weight, bias, residual, norm, self.stride, self.padding, self.dilation, self.groups,
                norm._fastconv_activation, self.algorithm,
            )  # fmt: skip
        return self._convolve(input, *folded(weight, bias, norm), norm._fastconv_activation, residual)

    def _takes_norm(self, input, weight, bias, residual, norm):
        """Can one call of the kernels do all, with nobody wanting a derivative?"""
        if not isinstance(input, torch.Tensor) or input.dim() != 4:
            return False
        if may_differentiate(input, weight, bias, residual, norm.weight, norm.bias) or self.padding_mode != "zeros":
            return False
        if residual is not None and not self._fits(input, residual):
            return False
        return not use_torch("conv", self._fastconv_fallback, input)

    def extra_repr(self):
        word = self._fastconv_norm[0]._fastconv_activation
        return f"{super().extra_repr()}, folds BatchNorm2d{f' and {label(word)}' if word else ''} in eval"


class FoldedBatchNorm2d(torch.nn.BatchNorm2d):
    """The BatchNorm of a conv -> BatchNorm2d pair: the identity in eval mode, where its convolution has done the work.

    In train mode, or without running statistics, it is torch's, followed by the residual and the activation that the
    pair absorbed.
    """

    _fastconv_activation = None

    def forward(self, input, residual=None):
        if folds(self):
            self._check_input_dim(input)
            return input
        output = super().forward(input)
        if residual is not None:
            same = output.shape == residual.shape and output.dtype == residual.dtype
            output = output.add_(residual) if same else output + residual
        return output if self._fastconv_activation is None else apply(self._fastconv_activation, output, inplace=True)

    def extra_repr(self):
        word = self._fastconv_activation
        return f"{super().extra_repr()}{f', with {label(word)}' if word else ''}, folded in eval"


class ConvActivation2d(Conv2d):
    """A convolution that does the activation after it; for ReLU there is fastconv.nn.ConvReLU2d."""

    @property
    def _activation(self):
        return self._fastconv_activation

    def extra_repr(self):
        return f"{super().extra_repr()}, with {label(self._activation)}"


class ConvMaxPool2d(ConvActivation2d):
    """A convolution that does the activation after it, if any, and the max-pool of window and stride 2 after that."""

    def _conv_forward(self, input, weight, bias):
        if self.padding_mode == "zeros" and not use_torch("conv", self._fastconv_fallback, input):
            return FF.conv2d_max_pool2d(
                input, weight, bias, self.stride, self.padding, self.dilation, self.groups,
                activation=self._activation, algorithm=self.algorithm,
            )  # fmt: skip
        output = self._convolve(input, weight, bias, self._activation)
        theirs = use_torch("pool", self._fastconv_fallback, output)
        return F.max_pool2d(output, 2) if theirs else FF.max_pool2d(output, 2)

    def extra_repr(self):
        word = f"{label(self._activation)} and " if self._activation else ""
        return f"{super(ConvActivation2d, self).extra_repr()}, with {word}MaxPool2d(2)"


class FusedActivation(torch.nn.Identity):
    """Stands where an activation or a max-pool stood whose work the convolution before it now does; keeps a Sequential's indices."""

    def extra_repr(self):
        return f"{self._fastconv_name}, done by {self._fastconv_by}"
