"""`fastconv.explain`: every row's answer to a problem, and which one runs."""

import contextlib

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from . import _activations as activations
from . import ops, selection
from ._shapes import transposed_sizes

_DTYPES = {
    torch.float32: "f32",
    torch.float64: "f64",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.uint8: "u8",
    torch.int8: "i8",
    torch.int16: "i16",
    torch.int32: "i32",
    torch.int64: "i64",
}


class Explanation:
    """What `explain` returns: printing it gives the tables.

    rows: a dict for each problem and row of the algorithm table: `layer` (the module's name, or ""), `problem` (its
    text), `name`, `device`, `ok`, `reason` (why not, or why chosen), `workspace_bytes`, `cost` (predicted seconds),
    `accuracy` (the accuracy class) and `chosen`.
    """

    def __init__(self, rows):
        self.rows = rows

    @property
    def chosen(self):
        """The name of each problem's algorithm, in order of the calls; None where no row takes it."""
        names = {}
        for row in self.rows:
            key = row["call"]
            names[key] = row["name"] if row["chosen"] else names.get(key)
        return list(names.values())

    def __str__(self):
        blocks = {}
        for row in self.rows:
            blocks.setdefault(row["call"], []).append(row)
        return "\n\n".join(_table(rows) for rows in blocks.values())

    __repr__ = __str__


def _table(rows):
    cells = [("", "algorithm", "device", "ok", "workspace", "predicted", "accuracy", "why")]
    for row in rows:
        ok = row["ok"]
        cells.append(
            (
                "->" if row["chosen"] else "",
                row["name"],
                row["device"],
                "yes" if ok else "no",
                _bytes(row["workspace_bytes"]) if ok else "",
                f"{row['cost'] * 1e3:.3g} ms" if ok else "",
                row["accuracy"] if ok else "",
                row["reason"],
            )
        )
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in cells]
    layer = rows[0]["layer"]
    return "\n".join([f"{layer}: {rows[0]['problem']}" if layer else rows[0]["problem"], *lines])


def _bytes(count):
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} GiB"


def explain(problem_or_module, *inputs):
    """Which algorithm runs a problem, which others could, and why not the rest. Prints as a table.

    explain(text): the problem of a canonical text, e.g. "conv n1c64h56w56 k64r3s3 st1 pd1 dl1 g1 f32 nchw fwd", on the CPU.
    explain(module, *inputs), explain(function, *inputs): calls it once without gradients, and explains each
    convolution and pooling of fastconv's that it makes. Buffers and random state are left as they were.

    Returns an `Explanation`. What `fastconv.algorithm` forces is taken into account; where the forced row refuses,
    nothing is chosen. Threads are torch's (torch.get_num_threads()).

    Raises ValueError for a text that is no problem, or a call that reaches none of fastconv's operators.
    """
    if isinstance(problem_or_module, str):
        if inputs:
            raise TypeError("fastconv: explain takes inputs with a module or function, not with a problem's text")
        ops.extension().parse_problem(problem_or_module)  # raises, where explaining would report
        return Explanation(_rows(problem_or_module, selection.resolve("auto"), "", "cpu", 0))
    if not callable(problem_or_module):
        raise TypeError(
            "fastconv: explain expects a problem's text, or a module or function, but got "
            f"{type(problem_or_module).__name__}"
        )
    with _unchanged(problem_or_module), torch.no_grad(), _Recorder(problem_or_module) as recorder:
        problem_or_module(*inputs)
    if not recorder.calls:
        raise ValueError(
            "fastconv: this call reaches none of fastconv's convolutions or pools; fastconv.convert(model) puts them in"
        )
    return Explanation([row for call, recorded in enumerate(recorder.calls) for row in _rows(*recorded, call)])


def _device(name):
    return "simulated" if name == "cpu" and ops.extension().simulated_gpu() else name


def _fuses_max_pool(text, algorithm, device):
    return ops.extension().fuses_max_pool(text, torch.get_num_threads(), algorithm, _device(device))


def _rows(text, algorithm, layer, device, call):
    extension = ops.extension()
    accuracy = extension.parse_problem(text).get("accuracy", "torch")  # pools are exact or correctly rounded sums
    rows = extension.explain(text, threads=torch.get_num_threads(), algorithm=algorithm, device=_device(device))
    return [{"call": call, "layer": layer, "problem": text, "accuracy": accuracy, **row} for row in rows]


@contextlib.contextmanager
def _unchanged(module):
    """Puts back what a forward may change: buffers (running statistics) and the random state."""
    buffers = list(module.buffers()) if isinstance(module, torch.nn.Module) else []
    kept = [buffer.detach().clone() for buffer in buffers]
    try:
        with torch.random.fork_rng():
            yield
    finally:
        with torch.no_grad():
            for buffer, values in zip(buffers, kept):
                buffer.copy_(values)


class _Recorder(TorchDispatchMode):
    """Collects (problem's text, algorithm, module's name, device) of every call of a fastconv operator."""

    def __init__(self, module):
        super().__init__()
        self.calls = []
        self._module = module
        self._layers = []
        self._handles = []

    def __enter__(self):
        if isinstance(self._module, torch.nn.Module):
            for name, child in self._module.named_modules():
                self._handles.append(child.register_forward_pre_hook(lambda *_, name=name: self._layers.append(name)))
                self._handles.append(child.register_forward_hook(lambda *_: self._layers.pop() and None))
        return super().__enter__()

    def __exit__(self, *exception):
        for handle in self._handles:
            handle.remove()
        return super().__exit__(*exception)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        describe = _DESCRIBE.get(func._schema.name)
        if describe is None:
            return func(*args, **(kwargs or {}))
        algorithm = "auto"
        at = {ops.conv2d: 9, ops.conv2d_max_pool2d: 8, ops.conv2d_batch_norm: 14, ops.conv_transpose2d: 8}.get(func)
        if at:  # run by whatever can: a refusal is for the table
            algorithm, args = args[at], (*args[:at], "auto", *args[at + 1 :])
        output = func(*args, **(kwargs or {}))
        first = output[0] if isinstance(output, tuple) else output
        if first.numel():
            text = ops.extension().problem_text(describe(output, *args))
            device = first.device.type
            if func is ops.conv2d_max_pool2d and not _fuses_max_pool(text, algorithm, device):
                return self._apart(types, algorithm, *args)
            layer = self._layers[-1] if self._layers else ""
            self.calls.append((text, algorithm, layer, device))
        return output

    def _apart(self, types, algorithm, x, w, bias, stride, padding, dilation, groups, activation, _, accuracy):
        """A convolution and a max-pool that run one after the other, recorded as the two that they are."""
        conv = x, w, bias, None, stride, padding, dilation, groups, activation, algorithm, accuracy
        between = self.__torch_dispatch__(ops.conv2d, types, conv)
        pool = between, [2, 2], [2, 2], [0, 0], [1, 1], False
        return self.__torch_dispatch__(ops.max_pool2d_values, types, pool)


def _alignment(tensor):
    address = tensor.data_ptr() | 64
    return (address & -address).bit_length() - 1


def _describe_conv2d(y, x, w, bias, residual, stride, padding, dilation, groups, activation, algorithm, accuracy):
    fields = _describe_geometry(x.shape, x, w, y, bias, stride, padding, dilation, groups, accuracy)
    if residual is not None:
        fields.update(residual=1, aux_strides=residual.stride())
    name, parameter = activations.parse(activation)
    return dict(fields, activation=name, activation_parameter=parameter or 0.0)


def _describe_conv2d_max_pool2d(y, x, w, bias, *rest):
    return dict(_describe_conv2d(y, x, w, bias, None, *rest), max_pool=1)


def _describe_conv2d_batch_norm(y, x, w, bias, residual, mean, var, gamma, beta, eps, *rest):
    return dict(_describe_conv2d(y, x, w, mean, residual, *rest), scale=1)  # there is always a shift


def _describe_conv_transpose2d(
    y, x, w, bias, stride, padding, output_padding, groups, dilation, algorithm, accuracy
):
    geometry = x.shape, w.shape, stride, padding, output_padding, groups, dilation
    _, reached, sides = transposed_sizes(*geometry)
    fields = _describe_geometry(reached, y, w, x, bias, stride, sides, dilation, groups, accuracy)
    return {**fields, "pass": "grad_input"}  # whose input is our output


def _describe_geometry(x_size, x, w, y, bias, stride, padding, dilation, groups, accuracy):
    fields = dict(zip("nchw", x_size), k=w.shape[0], r=w.shape[2], s=w.shape[3], groups=groups)
    fields.update(zip(("stride_h", "stride_w"), stride))
    fields.update(zip(("pad_top", "pad_left", "pad_bottom", "pad_right"), padding))
    fields.update(zip(("dilation_h", "dilation_w"), dilation))
    return dict(
        fields,
        x_strides=x.stride(),
        weight_strides=w.stride(),
        y_strides=y.stride(),
        x_align=_alignment(x),
        weight_align=_alignment(w),
        y_align=_alignment(y),
        dtype=_DTYPES[x.dtype],
        bias=int(bias is not None),
        accuracy=accuracy,
        deterministic=int(torch.are_deterministic_algorithms_enabled()),
    )


def _describe_pool(kind, x, y, kernel_size, stride, padding, ceil_mode):
    fields = dict(zip("nchw", x.shape), kind=kind, r=kernel_size[0], s=kernel_size[1], ceil_mode=int(ceil_mode))
    fields.update(zip(("stride_h", "stride_w"), stride))
    fields.update(zip(("pad_top", "pad_left"), padding))
    return dict(fields, x_strides=x.stride(), y_strides=y.stride(), dtype=_DTYPES[x.dtype])


def _describe_adaptive(kind, x, y):
    fields = dict(zip("nchw", x.shape), kind=kind, adaptive=1, p=y.shape[2], q=y.shape[3])
    return dict(fields, x_strides=x.stride(), y_strides=y.stride(), dtype=_DTYPES[x.dtype])


def _describe_adaptive_max_pool2d(output, x, output_size):
    y, offsets = output
    fields = _describe_adaptive("max", x, y)
    return dict(fields, offset_bytes=offsets.element_size(), offset_strides=offsets.stride())


def _describe_lp_pool2d(y, x, norm_type, kernel_size, stride, ceil_mode):
    return dict(_describe_pool("lp", x, y, kernel_size, stride, (0, 0), ceil_mode), norm=norm_type)


def _describe_max_pool2d_values(y, x, kernel_size, stride, padding, dilation, ceil_mode):
    fields = _describe_pool("max", x, y, kernel_size, stride, padding, ceil_mode)
    return dict(fields, dilation_h=dilation[0], dilation_w=dilation[1])


def _describe_max_pool2d(output, *args):
    y, offsets = output
    fields = _describe_max_pool2d_values(y, *args)
    return dict(fields, offset_bytes=offsets.element_size(), offset_strides=offsets.stride())


def _describe_avg_pool2d(y, x, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override):
    fields = _describe_pool("avg", x, y, kernel_size, stride, padding, ceil_mode)
    return dict(fields, count_include_pad=int(count_include_pad), divisor=divisor_override or 0)


_DESCRIBE = {
    "fastconv::conv2d": _describe_conv2d,
    "fastconv::conv2d_max_pool2d": _describe_conv2d_max_pool2d,
    "fastconv::conv2d_batch_norm": _describe_conv2d_batch_norm,
    "fastconv::conv_transpose2d": _describe_conv_transpose2d,
    "fastconv::max_pool2d": _describe_max_pool2d,
    "fastconv::max_pool2d_values": _describe_max_pool2d_values,
    "fastconv::avg_pool2d": _describe_avg_pool2d,
    "fastconv::adaptive_max_pool2d": _describe_adaptive_max_pool2d,
    "fastconv::adaptive_max_pool2d_values": lambda y, x, output_size: _describe_adaptive("max", x, y),
    "fastconv::adaptive_avg_pool2d": lambda y, x, output_size: _describe_adaptive("avg", x, y),
    "fastconv::lp_pool2d": _describe_lp_pool2d,
}
