"""What the source of a module's forward tells: which children it only calls, and whether rewriting it loses anything.

A trace sees tensors, not statements. Before a traced forward replaces the user's, the source must be free of what a
trace drops (context managers, attribute writes, prints); and below a forward that cannot be traced, only children that
its source provably calls as a whole may be looked at on their own. Both answers are "no" in doubt.
"""

import ast
import inspect
import math
import textwrap
import types

import torch

_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device)


class _Unknown(Exception):
    """The source cannot be had, or does something this page does not follow."""


def children_called_whole(module):
    """Names of the children that `module`'s forward uses in no other way than `self.child(...)`; empty in doubt."""
    try:
        uses = _Uses(module)
    except _Unknown:
        return set()
    return uses.called - uses.otherwise


def plain_attributes(module):
    """The plain attributes that forward reads, {name: value}, if a trace may replace it.

    Raises:
        ValueError: why a traced forward could behave differently from this one.
    """
    if "forward" in module.__dict__:
        raise ValueError("its forward is patched on the instance")
    if type(module).__module__.split(".")[0] == "torch":
        raise ValueError(f"the forward of {type(module).__name__} belongs to torch")
    for parameter in list(inspect.signature(type(module).forward).parameters.values())[1:]:
        if parameter.kind is not parameter.POSITIONAL_OR_KEYWORD:
            raise ValueError(f"its forward has the parameter '{parameter}'")
        if parameter.default is not parameter.empty and not _is_plain(parameter.default):
            raise ValueError(f"its forward has the default '{parameter}'")
    try:
        uses = _Uses(module)
        for function, tree in uses.functions:
            _refuse_effects(function, tree, uses)
    except _Unknown as unknown:
        raise ValueError(str(unknown)) from None
    return uses.plain


class _Uses:
    """How the methods reachable from forward use `self`."""

    def __init__(self, module):
        self.module = module
        self.called, self.otherwise, self.plain = set(), set(), {}
        self.functions = []
        self._seen = set()
        self._read(type(module).forward, method=True)

    def _read(self, function, method):
        if function in self._seen:
            return
        self._seen.add(function)
        tree = _parsed(function)
        self.functions.append((function, tree))
        me = tree.args.args[0].arg if method and tree.args.args else None
        parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and node.id == me and isinstance(node.ctx, ast.Load):
                attribute = parents[node]
                if not isinstance(attribute, ast.Attribute):
                    raise _Unknown(f"its {function.__name__} passes the module itself on")
                if isinstance(attribute.ctx, ast.Load):
                    parent = parents[attribute]
                    self._attribute(attribute.attr, isinstance(parent, ast.Call) and parent.func is attribute)
            elif isinstance(node, ast.Name) and node.id in ("super", "locals", "globals", "eval", "exec"):
                raise _Unknown(f"its {function.__name__} uses {node.id}()")
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                target = _lookup(function, node.func.id)
                if isinstance(target, types.FunctionType) and target.__module__.split(".")[0] != "torch":
                    self._read(target, method=False)

    def _attribute(self, name, is_called):
        if name in self.module._modules and self.module._modules[name] is not None:
            (self.called if is_called else self.otherwise).add(name)
            return
        if name in self.module._parameters or name in self.module._buffers or name == "training":
            return
        found = inspect.getattr_static(type(self.module), name, None)
        if name not in self.module.__dict__ and isinstance(found, types.FunctionType | staticmethod):
            function = found.__func__ if isinstance(found, staticmethod) else found
            if function.__module__.split(".")[0] == "torch":
                raise _Unknown(f"its forward uses self.{name}")
            self._read(function, method=function is found)
            return
        value = getattr(self.module, name, self)
        if not _is_plain(value):
            raise _Unknown(f"its forward reads self.{name}, which is neither a module nor plain data")
        self.plain[name] = value


def _refuse_effects(function, tree, uses):
    """Raise _Unknown for statements whose effect a trace would lose."""
    where = f"its {function.__name__}"
    if [d for d in tree.decorator_list if not (isinstance(d, ast.Name) and d.id == "staticmethod")]:
        raise _Unknown(f"{where} is decorated")
    local = set(function.__code__.co_varnames + function.__code__.co_cellvars)
    for node in ast.walk(tree):
        if isinstance(node, ast.With | ast.AsyncWith):
            raise _Unknown(f"{where} has a with statement")
        if isinstance(node, ast.Try | ast.Global | ast.Nonlocal | ast.Delete | ast.Yield | ast.YieldFrom | ast.Assert):
            raise _Unknown(f"{where} has a statement ({type(node).__name__.lower()}) that a trace does not keep")
        if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
            raise _Unknown(f"{where} writes the attribute '{node.attr}'")
        if (
            isinstance(node, ast.Expr)
            and not isinstance(node.value, ast.Constant)
            and not _kept(node.value, local, uses)
        ):
            raise _Unknown(f"{where} runs '{ast.unparse(node)}' for its effect")


def _kept(expression, local, uses):
    """Does a trace keep this expression statement? In-place tensor methods, module calls, lists that stay local."""
    if not isinstance(expression, ast.Call) or not isinstance(expression.func, ast.Attribute):
        return False
    root = expression.func
    while isinstance(root, ast.Attribute | ast.Subscript | ast.Call):
        root = root.func if isinstance(root, ast.Call) else root.value
    name = expression.func.attr
    if name in uses.called:
        return True
    return (
        isinstance(root, ast.Name)
        and root.id in local
        and (name.endswith("_") or name in ("append", "extend", "insert"))
    )


def _lookup(function, name):
    try:
        closure = inspect.getclosurevars(function)
    except ValueError:  # an empty cell: a name that is bound later
        raise _Unknown(f"the closure of {function.__name__} is not complete") from None
    return closure.nonlocals.get(name, closure.globals.get(name))


def _parsed(function):
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    except (OSError, TypeError, SyntaxError, IndexError):
        raise _Unknown(f"the source of {getattr(function, '__name__', function)} cannot be read") from None
    if not isinstance(tree, ast.FunctionDef):
        raise _Unknown(f"{function.__name__} is no plain function")
    return tree


def _is_plain(value):
    if isinstance(value, tuple):
        return type(value) is tuple and all(_is_plain(v) for v in value)
    return isinstance(value, _PLAIN) and not (isinstance(value, float) and not math.isfinite(value))
