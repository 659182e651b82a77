"""Exchanging the class of a live module, and back.

`convert` does not build new modules: it exchanges `module.__class__`. So parameters, buffers, custom attributes,
the training flag, sharing, and references that user code holds outside the module tree all stay as they are, and
`unconvert` is the same step backwards. Subclasses keep their own methods: they get a class made of ours and theirs.
"""

import copyreg
import importlib
import linecache
import types

ORIGIN = "_fastconv_origin"  # the class a module had before the first exchange, in the module's __dict__

_combined = {}
_rewritten = {}


def origin(module):
    """The class `module` had before `convert`; its present one if it was never exchanged."""
    return module.__dict__.get(ORIGIN, type(module))


def exchange(module, ours):
    """Make `module` an instance of `ours` and of its original class; remembers the original for `restore`."""
    _exchange(module, combined(ours, origin(module)))


def stand_in(module, ours):
    """Make `module` an instance of `ours` alone, whatever it was."""
    _exchange(module, ours)


def _exchange(module, new):
    module.__dict__.setdefault(ORIGIN, type(module))
    module.__class__ = new


def restore(module):
    """Undo `exchange` and `rewrite`: class and all `_fastconv_*` attributes. True if there was something to undo."""
    if ORIGIN not in module.__dict__:
        return False
    module.__class__ = module.__dict__[ORIGIN]
    for name in [name for name in module.__dict__ if name.startswith("_fastconv_")]:
        del module.__dict__[name]
    return True


def combined(ours, theirs):
    """`ours` itself where it derives from `theirs`; else a class derived from both, under the name of `theirs`."""
    if issubclass(ours, theirs):
        return ours
    if (ours, theirs) not in _combined:

        def fill(namespace):
            namespace["__module__"] = theirs.__module__
            namespace["__qualname__"] = theirs.__qualname__
            namespace["__doc__"] = theirs.__doc__
            namespace["__reduce_ex__"] = _reducer(_new_combined, ours, theirs)

        _combined[ours, theirs] = types.new_class(theirs.__name__, (ours, theirs), {}, fill)
    return _combined[ours, theirs]


def rewrite(module, source, names):
    """Give `module` the forward that `source` defines; `names` are the globals that the source needs."""
    _exchange(module, rewritten(origin(module), source, names))


def rewritten(theirs, source, names):
    """A subclass of `theirs` with a generated forward. One class per (theirs, source): equal blocks compile once."""
    if (theirs, source) not in _rewritten:
        # linecache makes tracebacks and debuggers show the generated lines; names in angle brackets never go stale.
        filename = f"<fastconv {theirs.__qualname__}.forward {len(_rewritten)}>"
        linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
        scope = dict(names)
        exec(compile(source, filename, "exec"), scope)

        def fill(namespace):
            namespace["__module__"] = theirs.__module__
            namespace["__qualname__"] = theirs.__qualname__
            namespace["__doc__"] = theirs.__doc__
            namespace["forward"] = scope["forward"]
            namespace["__reduce_ex__"] = _reducer(_new_rewritten, theirs, source, _packed(names))

        _rewritten[theirs, source] = types.new_class(theirs.__name__, (theirs,), {}, fill)
    return _rewritten[theirs, source]


def _reducer(make, *arguments):
    """A __reduce_ex__ for a class that no import can find: an empty object from `make`, then the usual state."""

    def __reduce_ex__(self, protocol):
        function, _, *rest = super(type(self), self).__reduce_ex__(max(protocol, 2))
        if function is not copyreg.__newobj__:
            raise TypeError(f"fastconv: {type(self).__qualname__} pickles in its own way; unconvert the model first")
        return (make, arguments, *rest)

    return __reduce_ex__


def _new_combined(ours, theirs):
    cls = combined(ours, theirs)
    return cls.__new__(cls)


def _new_rewritten(theirs, source, packed):
    names = {name: importlib.import_module(value) if kind == "module" else value for name, kind, value in packed}
    cls = rewritten(theirs, source, names)
    return cls.__new__(cls)


def _packed(names):
    return tuple(
        (name, "module", value.__name__) if isinstance(value, types.ModuleType) else (name, "value", value)
        for name, value in names.items()
        if name != "__builtins__"
    )
