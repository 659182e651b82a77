"""BatchNorm folded into the convolution before it, in eval mode, without touching a parameter.

In eval mode BatchNorm2d is the affine map y -> y * s + (beta - mean * s) with s = gamma / sqrt(var + eps)
(Ioffe & Szegedy 2015, arXiv:1502.03167, section 3.1), so conv and BatchNorm are one convolution with the filter
weight * s and the bias beta + (bias - mean) * s.

Both modules stay where they are, with their own parameters and buffers. The convolution knows its BatchNorm; whenever
that one is in eval mode, the convolution computes the folded filter and the BatchNorm passes its input through.
Nothing is kept between calls: weights change in ways that no counter sees (`.data`, numpy, fused optimizers), and the
fold costs 2 to 5 % of the convolution that follows. With gradients enabled the same expressions are differentiable.
"""

import torch
import torch.nn.functional as F

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

    def _conv_forward(self, input, weight, bias):
        batch_norm = self._fastconv_norm[0]
        if not folds(batch_norm):
            return self._convolve(input, weight, bias, None)
        weight, bias = folded(weight, bias, batch_norm)
        return self._convolve(input, weight, bias, "relu" if batch_norm._fastconv_relu else None)

    def extra_repr(self):
        return f"{super().extra_repr()}, folds BatchNorm2d{' and ReLU' if self._fastconv_norm[0]._fastconv_relu else ''} in eval"


class FoldedBatchNorm2d(torch.nn.BatchNorm2d):
    """The BatchNorm of a conv -> BatchNorm2d pair: the identity in eval mode, where its convolution has done the work.

    In train mode, or without running statistics, it is torch's, followed by the ReLU that the pair absorbed.
    """

    _fastconv_relu = False

    def forward(self, input):
        if folds(self):
            self._check_input_dim(input)
            return input
        output = super().forward(input)
        return F.relu(output, inplace=True) if self._fastconv_relu else output

    def extra_repr(self):
        return f"{super().extra_repr()}{', with ReLU' if self._fastconv_relu else ''}, folded in eval"


class FusedReLU(torch.nn.Identity):
    """Stands where a ReLU stood whose work the convolution before it now does; keeps the indices of a Sequential."""

    def extra_repr(self):
        return f"ReLU, done by {self._fastconv_by}"
