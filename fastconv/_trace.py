"""Who calls whom: every call of a module in a model's forward passes, found by symbolic tracing (torch.fx).

The model is traced in train and in eval mode, on a copy that shares the parameters only, so that nothing a forward
writes reaches the user's model. What cannot be traced is stepped around: the module that failed becomes opaque and the
rest is traced without it; below it, only children that its source calls as a whole are traced on their own, and every
other module there is `unknown`: it may be called by code that nobody saw, so nothing is fused with it.
"""

import copy
import operator
from collections import defaultdict, deque

import torch
import torch.fx
import torch.nn.functional as F

from . import _activations as activations
from . import nn as fnn
from ._source import children_called_whole

_LEAVES = (
    torch.nn.Conv2d,
    torch.nn.ConvTranspose2d,
    torch.nn.modules.batchnorm._BatchNorm,
    torch.nn.ReLU,
    torch.nn.Identity,
    torch.nn.MaxPool2d,
    torch.nn.AvgPool2d,
    torch.nn.LPPool2d,
    torch.nn.AdaptiveMaxPool2d,
    torch.nn.AdaptiveAvgPool2d,
)
_FUNCTIONS = {  # function or method -> (activation, its arguments after the input)
    F.relu: ("relu", ("inplace",)),
    torch.relu: ("relu", ()),
    torch.relu_: ("relu", ()),
    "relu": ("relu", ()),
    "relu_": ("relu", ()),
    F.leaky_relu: ("leaky_relu", ("negative_slope", "inplace")),
    F.leaky_relu_: ("leaky_relu", ("negative_slope",)),
    F.relu6: ("relu6", ("inplace",)),
    F.elu: ("elu", ("alpha", "inplace")),
    F.elu_: ("elu", ("alpha",)),
    torch.sigmoid: ("sigmoid", ()),
    torch.sigmoid_: ("sigmoid", ()),
    "sigmoid": ("sigmoid", ()),
    "sigmoid_": ("sigmoid", ()),
    torch.tanh: ("tanh", ()),
    torch.tanh_: ("tanh", ()),
    "tanh": ("tanh", ()),
    "tanh_": ("tanh", ()),
    F.silu: ("silu", ("inplace",)),
    F.gelu: ("gelu", ("approximate",)),
    F.hardswish: ("hardswish", ("inplace",)),
}
_INPLACE = (torch.relu_, F.leaky_relu_, F.elu_, torch.sigmoid_, torch.tanh_, "relu_", "sigmoid_", "tanh_")


class Call:
    """One node of a traced graph: what is called (`module`, or None), in whose forward, and which one there."""

    def __init__(self, node, module, frame):
        self.node = node
        self.module = module
        self.frame = frame  # (name of the module whose forward runs, serial number of that run)
        self.ordinal = None  # of activations and max-pools that may be fused: how many ran before it in the same frame

    @property
    def owner(self):
        return self.frame[0]


class Calls:
    """All calls of all traced regions of a model. Modules are the user's own, not the traced copies."""

    def __init__(self):
        self.of_module = defaultdict(list)  # module -> [Call]
        self.of_node = {}
        self.unknown = {}  # module -> why nobody knows its calls
        self.untraced = {}  # name -> why it could not be traced

    def follower(self, call):
        """The Call that is the only user of `call`'s output, or None."""
        users = list(call.node.users)
        return self.of_node.get(users[0]) if len(users) == 1 else None

    def sum_after(self, call):
        """The Call that adds another tensor and is the only user of `call`'s output, or None."""
        found = self.follower(call)
        return found if found and is_sum_of(found.node, call.node) else None

    def activation_after(self, call):
        """The activation that all see `call` through: its only user, or an in-place one before all others."""
        users = list(call.node.users)  # in the order of execution
        first = self.of_node.get(users[0]) if users else None
        if first is None or activation_of(first) is None:
            return None
        return first if len(users) == 1 or is_inplace(first) else None


def is_sum_of(node, term):
    """Does `node` add another tensor to `term`, without changing that other one?"""
    if node.op != "call_function" or node.target not in (operator.add, operator.iadd, torch.add) or node.kwargs:
        return False
    terms = node.args
    if len(terms) != 2 or not all(isinstance(t, torch.fx.Node) for t in terms) or terms[0] is terms[1]:
        return False
    return terms[0] is term or (terms[1] is term and node.target is not operator.iadd)


def activation_of(call):
    """The word of the activation (see _activations.py) that this call is; None if it is something else."""
    node = call.node
    if len(node.all_input_nodes) != 1:
        return None
    if node.op == "call_module":
        return activations.of_module(call.module)
    found = _FUNCTIONS.get(node.target) if node.op in ("call_function", "call_method") else None
    options = _options(node)
    if found is None or not options.keys() <= set(found[1]):
        return None
    return activations.word_for(found[0], options)


def is_halving_pool(call):
    """Is this the max-pool that a convolution can do: window and stride 2, values only?"""
    node = call.node
    if len(node.all_input_nodes) != 1 or len(node.args) < 1:
        return False
    if node.op == "call_module":
        return is_halving_module(call.module)
    if node.op != "call_function" or node.target not in (F.max_pool2d, torch.max_pool2d):
        return False
    names = "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"
    return _halves(**dict(zip(names, node.args[1:])), **node.kwargs)


def is_halving_module(module):
    if type(module) is not torch.nn.MaxPool2d and not isinstance(module, fnn.MaxPool2d):
        return False
    return _halves(
        module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode, module.return_indices
    )


def _halves(kernel_size=0, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
    def is_all(value, number):
        values = value if isinstance(value, tuple | list) else (value,)
        return len(values) in (1, 2) and all(type(v) is int and v == number for v in values)

    whole = is_all(kernel_size, 2) and (stride in (None, [], ()) or is_all(stride, 2))
    return whole and is_all(padding, 0) and is_all(dilation, 1) and ceil_mode is False and return_indices is False


def may_go(call):
    """Could a convolution before it do this call's work?"""
    return activation_of(call) is not None or is_halving_pool(call)


def _options(node):
    """The arguments after the input, by name; those that the function does not have under a name of its own."""
    names = _FUNCTIONS.get(node.target, ("", ()))[1]
    given = node.args if "input" in node.kwargs else node.args[1:]
    options = {names[i] if i < len(names) else f"argument {i}": value for i, value in enumerate(given)}
    return options | {name: value for name, value in node.kwargs.items() if name != "input"}


def is_inplace(call):
    node = call.node
    if node.op == "call_module":
        return getattr(call.module, "inplace", False)
    return node.target in _INPLACE or _options(node).get("inplace", False) is True


class _Tracer(torch.fx.Tracer):
    """Marks each node with the module whose forward makes it, and remembers the module in which tracing failed."""

    def __init__(self, opaque, shallow=False):
        super().__init__()
        self.opaque = opaque
        self.shallow = shallow  # every module is a leaf: one forward alone
        self.culprit = None
        self._frames = [("", 0)]
        self._serial = 0

    def is_leaf_module(self, module, name):
        leaf = self.shallow or module in self.opaque or isinstance(module, _LEAVES)
        return leaf or super().is_leaf_module(module, name)

    def call_module(self, module, forward, args, kwargs):
        name = self.path_of_module(module)
        if self.is_leaf_module(module, name):
            return super().call_module(module, forward, args, kwargs)
        self._serial += 1
        self._frames.append((name, self._serial))
        try:
            return super().call_module(module, forward, args, kwargs)
        except Exception:
            self.culprit = self.culprit or module
            raise
        finally:
            self._frames.pop()

    def create_node(self, *args, **kwargs):
        node = super().create_node(*args, **kwargs)
        node.meta["fastconv"] = self._frames[-1]
        return node


def trace_calls(model, is_hooked):
    """Calls of `model` in train and eval mode. `is_hooked(module)`: others watch its calls: look at it on its own."""
    calls = Calls()
    try:
        twin = _twin(model)
    except Exception as error:
        calls.untraced[""] = f"it cannot be copied for tracing ({_short(error)})"
        calls.unknown.update((m, calls.untraced[""]) for m in model.modules())
        return calls
    real = dict(model.named_modules(remove_duplicate=False))
    names = {m: name for name, m in twin.named_modules()}
    opaque = {m for m in twin.modules() if m is not twin and (is_hooked(real[names[m]]) or "forward" in m.__dict__)}
    queue, queued = deque([twin]), {twin}
    while queue:
        root = queue.popleft()
        graphs, reason = _trace_region(root, opaque)
        if graphs is None:
            calls.untraced[names[root]] = reason
            whole = children_called_whole(root)
            for name, child in root.named_children():
                if name in whole and not isinstance(child, _LEAVES) and child not in queued:
                    queued.add(child)
                    queue.append(child)
                elif name not in whole or isinstance(child, _LEAVES):
                    why = (
                        f"'{names[root]}' cannot be traced: {reason}"
                        if names[root]
                        else f"the model cannot be traced: {reason}"
                    )
                    calls.unknown.update((real[names[m]], why) for m in child.modules())
            continue
        for graph in graphs:
            prefix = f"{names[root]}." if names[root] else ""
            for module in _record(calls, graph, root, lambda m: real[names[m]], prefix):
                if module in opaque and module not in queued:
                    queued.add(module)
                    queue.append(module)
    return calls


def trace_forward(module):
    """The graph of `module`'s own forward, its children being leaves; its calls that may go, by ordinal.

    Raises:
        ValueError: why this graph could not stand for the forward.
    """
    twin = _twin(module)
    graphs = []
    for mode in (True, False):
        twin.train(mode)
        before = dict(twin.__dict__)
        try:
            with torch.random.fork_rng(devices=[]):
                graph = _Tracer(set(), shallow=True).trace(twin)
        except Exception as error:
            raise ValueError(f"its forward cannot be traced: {_short(error)}") from None
        if {k: id(v) for k, v in before.items()} != {k: id(v) for k, v in twin.__dict__.items()}:
            raise ValueError("its forward changes attributes of the module or creates tensors")
        graphs.append(graph)
    train, evaluation = (graph.python_code("self").src for graph in graphs)
    if train != evaluation:
        raise ValueError("its forward differs between train and eval mode")
    modules = dict(twin.named_modules(remove_duplicate=False))
    calls = [
        Call(node, modules.get(node.target) if node.op == "call_module" else None, ("", 0)) for node in graphs[0].nodes
    ]
    return graphs[0], [call.node for call in calls if may_go(call)]


def _twin(model):
    """A copy of the module tree that shares the parameters: what a traced forward writes stays in the copy."""
    return copy.deepcopy(model, {id(p): p for p in model.parameters()})


def _trace_region(root, opaque):
    """([train graph, eval graph], None), or (None, reason) if `root`'s own forward cannot be traced."""
    if "forward" in root.__dict__:
        return None, "its forward is patched on the instance"
    inner = opaque - {root}
    while True:
        graphs = []
        for mode in (True, False):
            try:
                root.train(mode)
                tracer = _Tracer(inner)
                with torch.random.fork_rng(devices=[]):
                    graphs.append(tracer.trace(root))
            except Exception as error:
                if tracer.culprit is None or tracer.culprit in inner:
                    return None, _short(error)
                # Blocks of one class mostly fail alike: step around all at once. A container's class says nothing.
                kind = type(tracer.culprit)
                same = kind is not torch.nn.Sequential
                failed = {
                    m for m in root.modules() if m is tracer.culprit or (same and type(m) is kind and m is not root)
                }
                inner |= failed
                opaque |= failed
                break
        else:
            return graphs, None


def _record(calls, graph, root, real, prefix):
    """Enter a graph's nodes into `calls`; yields the traced copies of the modules that it calls."""
    modules = dict(root.named_modules(remove_duplicate=False))
    counts = defaultdict(int)
    for node in graph.nodes:
        traced = modules[node.target] if node.op == "call_module" else None
        name, serial = node.meta["fastconv"]
        owner = prefix + name if name else prefix.rstrip(".")
        call = Call(node, None if traced is None else real(traced), (owner, (id(graph), serial)))
        calls.of_node[node] = call
        if may_go(call):
            call.ordinal = counts[call.frame]
            counts[call.frame] += 1
        if traced is not None:
            calls.of_module[call.module].append(call)
            yield traced


def _short(error):
    text = str(error).strip().splitlines()
    return text[0].split(". ")[0].removesuffix(".") if text else type(error).__name__
