"""onnxruntime on the CPU as a peer: one layer as a graph, weights as initializers, outputs bound beforehand.

It packs weights and chooses blocked layouts itself, so it is given NCHW only. Forward passes only.
"""

import importlib.util

import torch

from . import contestants as c
from . import geometry as g

# What onnx 1.16 to 1.23 and onnxruntime from 1.18 on agree about; the layers here have not changed since opset 13.
_OPSET, _IR = 18, 9
_ACTIVATIONS = {"relu": "Relu", "leaky_relu": "LeakyRelu", "elu": "Elu", "sigmoid": "Sigmoid", "tanh": "Tanh",
                "hardswish": "HardSwish"}  # fmt: skip


def absent():
    missing = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    return f"{' and '.join(missing)} not installed: pip install 'fastconv[bench]'" if missing else None


def contestant(case, t, layout, threads):
    """
    Raises:
        Refused: a gradient, or a problem that onnxruntime does not take, with its words.
    """
    import onnxruntime

    if case.direction != "fwd":
        raise c.Refused("onnxruntime runs forward passes only")
    if layout != "nchw":
        raise c.Refused("onnxruntime takes NCHW only")
    if case.dtype == "bf16":
        raise c.Refused("onnxruntime has no bfloat16 on the CPU, and numpy has no such type")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Its threads spin after a call, which would slow whoever comes next in the round.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 4
    try:
        model = _model(case.fields, t).SerializeToString()
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        binding = session.io_binding()
        for name, tensor in _inputs(t).items():
            binding.bind_cpu_input(name, tensor.detach().contiguous().numpy())
        y = _output(case.fields, t)
        binding.bind_output("y", "cpu", 0, y.numpy().dtype, tuple(y.shape), y.data_ptr())
        call = lambda: session.run_with_iobinding(binding)  # noqa: E731
        call()
    except Exception as error:  # its exceptions have no common base but Exception
        if isinstance(error, c.Refused):
            raise
        raise c.Refused(f"onnxruntime: {str(error).splitlines()[0]}") from None

    def results():
        y.fill_(float("nan"))
        call()
        return [y.clone()]

    return c.Contestant("onnxruntime", layout, call, results, held_bytes=y.numel() * y.element_size())


def _inputs(t):
    return {name: tensor for name, tensor in (("x", t.x), ("residual", t.residual)) if tensor is not None}


def _output(fields, t):
    if fields["kind"] == "linear":
        return torch.empty(len(t.x), fields["k"], dtype=t.x.dtype)
    return torch.empty(g.output_sizes(fields), dtype=t.x.dtype)


def _model(fields, t):
    from onnx import helper, numpy_helper

    constants = {"w": t.weight, "b": t.bias}
    constants = {name: v.detach().contiguous().numpy() for name, v in constants.items() if v is not None}
    nodes, at = [], "x"

    def then(kind, inputs, **attributes):
        nonlocal at
        at = f"t{len(nodes)}"
        nodes.append(helper.make_node(kind, inputs, [at], **attributes))

    if fields["kind"] == "linear":
        then("Flatten", ["x"])
        then("Gemm", [at, *constants], transB=1)
    elif fields["kind"] == "conv":
        then("Conv", ["x", *constants], kernel_shape=g.window(fields), group=fields["groups"], **_geometry(fields))
    elif fields["kind"] == "conv_transpose":
        more = {"output_padding": g.output_padding(fields), "group": fields["groups"]}
        then("ConvTranspose", ["x", *constants], kernel_shape=g.window(fields), **more, **_geometry(fields))
    elif fields["kind"] == "lp":
        then("LpPool", ["x"], **_lp_pool(fields))
    else:
        then("MaxPool" if fields["kind"] == "max" else "AveragePool", ["x"], **_pool(fields))
    if t.residual is not None:
        then("Add", [at, "residual"])
    name, number = g.activation(fields)
    if name != "none":
        if name not in _ACTIVATIONS:
            raise c.Refused(f"onnxruntime has no {name} before opset 20, or in several nodes only")
        then(_ACTIVATIONS[name], [at], **({} if number is None else {"alpha": number}))
    nodes[-1].output[0] = "y"
    of = helper.np_dtype_to_tensor_dtype(t.x.detach().numpy().dtype)
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info(name, of, list(v.shape)) for name, v in _inputs(t).items()],
        [helper.make_tensor_value_info("y", of, list(_output(fields, t).shape))],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)


def _geometry(fields):
    return {"strides": g.stride(fields), "pads": g.pads(fields), "dilations": g.dilation(fields)}


def _pool(fields):
    if g.is_adaptive(fields):
        raise c.Refused("ONNX has no adaptive pooling")
    if fields.get("divisor"):
        raise c.Refused("onnxruntime has no divisor of one's own")
    geometry = _geometry(fields)
    if fields["kind"] == "avg":
        del geometry["dilations"]
        geometry["count_include_pad"] = int(fields.get("count_include_pad", True))
    return {"kernel_shape": g.window(fields), "ceil_mode": int(fields["ceil_mode"]), **geometry}


def _lp_pool(fields):
    if fields["norm"] % 2:
        raise c.Refused("ONNX's LpPool takes absolute values, and whole norms only")
    if fields["ceil_mode"]:
        raise c.Refused("ONNX's LpPool does not scale windows that reach over the border, as torch does")
    geometry = {key: value for key, value in _geometry(fields).items() if key != "pads"}
    return {"kernel_shape": g.window(fields), "p": int(fields["norm"]), **geometry}
