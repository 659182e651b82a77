"""One operator with its derivatives: how autograd, torch.func and torch.library are told of them.

Every operator here is a callable of the operator's own arguments that finds its way by the state of torch:

* compiling, or no gradient wanted: the operator itself;
* eager autograd: a plain torch.autograd.Function (5 us where `setup_context` costs 30);
* torch.func transforms and forward-mode AD: a Function with `setup_context`, `vmap` and `jvp`. torch.compile cannot
  trace a Function that has a `jvp`, but never sees one.
"""

import torch
from torch.autograd import forward_ad

from . import ops


def transforming():
    """Is a torch.func transform active, or forward-mode AD?"""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


class _Primals:
    """A context whose saved tensors have lost the tangents of the level that a jvp works for."""

    def __init__(self, ctx):
        self._ctx = ctx

    def __getattr__(self, name):
        return getattr(self._ctx, name)

    @property
    def saved_tensors(self):
        saved = self._ctx.saved_tensors
        return tuple(t if t is None else forward_ad.unpack_dual(t).primal for t in saved)


class Differentiable:
    """An operator with its derivative.

    tensors: how many leading arguments are tensors (or None).
    setup(ctx, args, output, needs, save): keeps on ctx what backward (and jvp) will read; needs[i]: whether argument
    i's gradient is wanted; save(*tensors) keeps tensors. backward(ctx, *grads) returns the gradients of the tensors,
    jvp(ctx, *tangents) is given those of the tensors.
    """

    def __init__(self, name, tensors, setup, backward, jvp):
        self.name = name
        self._short_way = f"eager_{name}"
        self.tensors = tensors
        self._setup = setup
        self._backward = backward
        self._jvp = jvp
        # Function.apply looks for setup_context and functorch's wrappers first, 2.5 us for nothing: a plain Function has
        # none, and __call__ has looked for transforms. Its base class does the rest.
        self._apply_plain = super(torch.autograd.Function, self._make_plain()).apply
        self._apply_transformed = self._make_transformed().apply

    def __call__(self, *args):
        if transforming():
            return self._apply_transformed(*args)
        if torch.is_grad_enabled():
            for tensor in args[: self.tensors]:
                if tensor is not None and tensor.requires_grad:
                    return self._apply_plain(*args)
        return self.run(*args)

    def run(self, *args):
        """The operator, without a derivative."""
        output = getattr(ops, self._short_way)(*args)
        return getattr(ops, self.name)(*args) if output is None else output

    # As torch.library.register_autograd takes them.

    def setup_context(self, ctx, inputs, output):
        ctx.set_materialize_grads(False)
        ctx.arguments = len(inputs)
        self._setup(ctx, inputs, output, ctx.needs_input_grad, ctx.save_for_backward)

    def backward(self, ctx, *grads):
        for grad in grads:
            if grad is not None:
                found = self._backward(ctx, *grads)
                return found + (None,) * (ctx.arguments - len(found))
        return (None,) * ctx.arguments

    def _make_plain(self):
        def forward(ctx, *args):
            output = self.run(*args)
            self.setup_context(ctx, args, output)
            return output

        return self._make_function("", forward=forward)

    def _make_transformed(self):
        def setup_context(ctx, inputs, output):
            ctx.set_materialize_grads(False)
            ctx.arguments = len(inputs)

            def save(*tensors):
                ctx.save_for_backward(*tensors)
                ctx.save_for_forward(*tensors)

            self._setup(ctx, inputs, output, (True,) * len(inputs), save)

        def vmap(info, in_dims, *args):
            from ._vmap import RULES

            return RULES[self.name](self, info, in_dims, *args)

        def jvp(ctx, *tangents):
            # torch turns forward mode off here, which would cut off tangents of tangents (jacfwd of jacfwd): a linear
            # formula's second derivative would silently be 0.
            with forward_ad._set_fwd_grad_enabled(True):
                return self._jvp(_Primals(ctx), *tangents[: self.tensors])

        return self._make_function(
            "Transformed", forward=self.run, setup_context=setup_context, vmap=vmap, jvp=jvp
        )

    def _make_function(self, suffix, **methods):
        name = "Fastconv" + "".join(word.title() for word in self.name.split("_")) + suffix
        methods = {key: staticmethod(method) for key, method in methods.items()}
        return type(name, (torch.autograd.Function,), {"backward": staticmethod(self.backward), **methods})
