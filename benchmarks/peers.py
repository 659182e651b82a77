"""Whom fastconv is measured against, by name, each in its best setting; those that are not here are named as absent."""

import importlib
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass

from . import contestants
from .models import LAYOUTS


@dataclass(frozen=True)
class Peer:
    """`contestant(case, tensors, layout, threads)` prepares it (or raises Refused), `absent()` says why it is not
    here. `package` is whose version is recorded."""

    name: str
    setting: str
    package: str
    contestant: Callable
    absent: Callable
    layouts: tuple = tuple(LAYOUTS)

    def version(self):
        return None if self.absent() else importlib.metadata.version(self.package)


def _of(module, name):
    """A function of a module here that is loaded at the first call: Inductor alone takes a second to import."""
    return lambda *arguments: getattr(importlib.import_module(f".{module}", __package__), name)(*arguments)


_ALL = (
    Peer("torch", "eager, NCHW and channels_last", "torch", contestants.torch_eager, lambda: None),
    Peer("torch.compile", "Inductor, weights frozen, NCHW and channels_last", "torch", _of("compiled", "contestant"),
         _of("compiled", "absent")),
    Peer("onnxruntime", "CPU, all graph optimisations, packed weights, bound outputs; forward only", "onnxruntime",
         _of("onnx_runtime", "contestant"), _of("onnx_runtime", "absent"), ("nchw",)),
    Peer("jax", "XLA on all cores, NCHW and NHWC; forward only", "jax", _of("jax_lax", "contestant"),
         _of("jax_lax", "absent")),
)  # fmt: skip
PEERS = {peer.name: peer for peer in _ALL}
