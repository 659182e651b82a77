"""BatchNorm folded into the convolution before it, in eval mode, without touching a parameter.

In eval mode BatchNorm2d is the affine map y -> y * s + (beta - mean * s) with s = gamma / sqrt(var + eps)
(Ioffe & Szegedy 2015, arXiv:1502.03167, section 3.1), so conv and BatchNorm are one convolution with the filter
weight * s and the bias beta + (bias - mean) * s.

Both modules stay where they are, with their own parameters and buffers. The convolution knows its BatchNorm; whenever
that one is in eval mode, the convolution uses the folded filter and the BatchNorm passes its input through.

The folded filter is kept beside the module, in no state_dict and no pickle, and used again only if a 128-bit hash of
all that went into it, taken at each call, is the same: `.data`, numpy and fused optimizers change weights without a
trace. Folding anew at each call costs more than the arithmetic: a filter at a new address cannot be recognised by the
filter cache, so its own transformed form is lost too (512 filters of 512x3x3 on 7x7, one thread: 8.3 ms; kept 2.45;
conv and BatchNorm apart 2.5).
With gradients, under torch.compile and inside transforms the same expressions run as ordinary operators.
"""

import weakref

import torch

from ._activations import apply, label
from .nn import Conv2d

# Below this many bytes of filter, folding takes about as long as recognising.
_WORTH_KEEPING = 16 << 10

_kept = weakref.WeakKeyDictionary()  # convolution -> (fingerprint, folded weight, folded bias)


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


def _may_keep(weight, *others):
    """Is this a plain call on the CPU, outside any transform, in which nothing is differentiated?"""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or weight.device.type != "cpu":
        return False
    if torch._C._are_functorch_transforms_active() or torch._C._len_torch_dispatch_stack():
        return False
    if weight.nbytes < _WORTH_KEEPING or type(weight) not in (torch.Tensor, torch.nn.Parameter):
        return False
    return not (torch.is_grad_enabled() and any(t.requires_grad for t in (weight, *others)))


def _kept_or_folded(conv, weight, bias, batch_norm):
    """`folded`, but the previous result if nothing that went into it has changed."""
    inputs = [weight, bias, batch_norm.running_mean, batch_norm.running_var, batch_norm.weight, batch_norm.bias]
    inputs = [t for t in inputs if t is not None]
    if not _may_keep(*inputs):
        return folded(weight, bias, batch_norm)
    signs = [(t.dtype, t.shape, t.stride()) for t in inputs]
    fingerprint = (torch.ops.fastconv.content_hash.default(inputs), signs, batch_norm.eps)
    found = _kept.get(conv)
    if found is None or found[0] != fingerprint:
        with torch.inference_mode(False), torch.no_grad():  # an inference tensor could not serve later autograd calls
            result = folded(weight, bias, batch_norm)
        torch.ops.fastconv.freeze_weight(result[0], True)  # nobody else holds it: the filter cache need not hash it
        found = _kept[conv] = (fingerprint, *result)
    return found[1:]


def forget(conv):
    """Drop the folded filter that is kept for this module, if any."""
    _kept.pop(conv, None)


class ConvBatchNorm2d(Conv2d):
    """The convolution of a conv -> BatchNorm2d pair. `_fastconv_norm` is a 1-tuple, so that the BatchNorm is not
    registered a second time: names and state_dict stay as they were.
    """

    def _conv_forward(self, input, weight, bias):
        batch_norm = self._fastconv_norm[0]
        if not folds(batch_norm):
            if not torch.compiler.is_compiling():
                forget(self)  # in training its memory is better used
            return self._convolve(input, weight, bias, None)
        weight, bias = _kept_or_folded(self, weight, bias, batch_norm)
        return self._convolve(input, weight, bias, batch_norm._fastconv_activation)

    def extra_repr(self):
        word = self._fastconv_norm[0]._fastconv_activation
        return f"{super().extra_repr()}, folds BatchNorm2d{f' and {label(word)}' if word else ''} in eval"


class FoldedBatchNorm2d(torch.nn.BatchNorm2d):
    """The BatchNorm of a conv -> BatchNorm2d pair: the identity in eval mode, where its convolution has done the work.

    In train mode, or without running statistics, it is torch's, followed by the activation that the pair absorbed.
    """

    _fastconv_activation = None

    def forward(self, input):
        if folds(self):
            self._check_input_dim(input)
            return input
        output = super().forward(input)
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


class FusedActivation(torch.nn.Identity):
    """Stands where an activation stood whose work the convolution before it now does; keeps a Sequential's indices."""

    def extra_repr(self):
        return f"{self._fastconv_name}, done by {self._fastconv_by}"
