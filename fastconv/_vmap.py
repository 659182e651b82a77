"""Batching rules: how one call does the work of a batch of calls.

A batch of inputs joins the batch dimension; a batch of filters becomes groups. Both are single calls of the same
operators. One rule for each operator: `rule(operator, info, in_dims, *args)`, where `operator` is what to call, the
operator itself or its autograd Function, and the rest is as torch.library.register_vmap and Function.vmap have it.
"""


def _front(tensor, dim, size):
    """The batch dimension first; an unbatched tensor is repeated (by stride 0, not in memory)."""
    if tensor is None:
        return None
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _join(tensor, dim, size, at):
    """The batch dimension merged into dimension `at` of the unbatched tensor."""
    if tensor is None:
        return None
    tensor = _front(tensor, dim, size).movedim(0, at)
    return tensor.reshape(*tensor.shape[:at], size * tensor.shape[at + 1], *tensor.shape[at + 2 :])


def _joined_size(sizes, size, at):
    return [*sizes[:at], size * sizes[at], *sizes[at + 1 :]]


def conv2d(operator, info, in_dims, x, w, b, res, stride, padding, dilation, groups, *rest):
    size = info.batch_size
    dx, dw, db, dres = in_dims[:4]
    if dw is None and db is None:
        y = operator(
            _join(x, dx, size, 0), w, b, _join(res, dres, size, 0), stride, padding, dilation, groups, *rest
        )
        return y.unflatten(0, (size, -1)), 0
    if dx is None and groups == 1:  # one input, many filters: they are just more of them
        joined, groups = x, 1
    else:
        joined, groups = _join(x, dx, size, 1), size * groups
    y = operator(
        joined,
        _join(w, dw, size, 0),
        _join(b, db, size, 0),
        _join(res, dres, size, 1),
        stride,
        padding,
        dilation,
        groups,
        *rest,
    )
    return y.unflatten(1, (size, -1)), 1


def conv2d_max_pool2d(operator, info, in_dims, x, w, b, *conf):
    def without_residual(x, w, b, residual, *conf):
        return operator(x, w, b, *conf)

    return conv2d(without_residual, info, (*in_dims[:3], None), x, w, b, None, *conf)


def conv2d_batch_norm(operator, info, in_dims, x, w, b, res, mean, var, gamma, beta, eps, *conf):
    """The BatchNorm's vectors are one more property of the filters."""
    size, statistics = info.batch_size, (mean, var, gamma, beta)

    def normalised(x, w, b, res, stride, padding, dilation, groups, *rest):
        vectors = statistics
        if w is not weight:  # as many filters as there are batches of them
            vectors = [_join(v, d, size, 0) for v, d in zip(statistics, in_dims[4:8], strict=True)]
        return operator(x, w, b, res, *vectors, eps, stride, padding, dilation, groups, *rest)

    dw = in_dims[1]
    if dw is None and any(d is not None for d in (in_dims[2], *in_dims[4:8])):
        w, dw = _front(w, None, size), 0
    weight = w
    return conv2d(normalised, info, (in_dims[0], dw, *in_dims[2:4]), x, w, b, res, *conf)


def conv2d_grad_input(operator, info, in_dims, gy, w, y, input_size, stride, padding, dilation, groups, *rest):
    size = info.batch_size
    dgy, dw, dy = in_dims[:3]
    at = 0 if dw is None else 1
    gx = operator(
        _join(gy, dgy, size, at),
        w if dw is None else _join(w, dw, size, 0),
        _join(y, dy, size, at),
        _joined_size(input_size, size, at),
        stride,
        padding,
        dilation,
        groups if dw is None else size * groups,
        *rest,
    )
    return gx.unflatten(at, (size, -1)), at


def conv2d_grad_weight(
    operator, info, in_dims, x, gy, y, weight_size, bias, stride, padding, dilation, groups, *rest
):
    size = info.batch_size
    dx, dgy, dy = in_dims[:3]
    gw, gb = operator(
        _join(x, dx, size, 1),
        _join(gy, dgy, size, 1),
        _join(y, dy, size, 1),
        _joined_size(weight_size, size, 0),
        bias,
        stride,
        padding,
        dilation,
        size * groups,
        *rest,
    )
    return (gw.unflatten(0, (size, -1)), gb.reshape(size, -1)), (0, 0)


def conv_transpose2d(operator, info, in_dims, x, w, b, stride, padding, output_padding, groups, *rest):
    size = info.batch_size
    dx, dw, db = in_dims[:3]
    if dw is None and db is None:
        y = operator(_join(x, dx, size, 0), w, b, stride, padding, output_padding, groups, *rest)
        return y.unflatten(0, (size, -1)), 0
    b = _join(b, db, size, 0)
    if dx is None and groups == 1:  # one input, many filters: more output channels
        y = operator(x, _join(w, dw, size, 1), b, stride, padding, output_padding, 1, *rest)
    else:
        x, w = _join(x, dx, size, 1), _join(w, dw, size, 0)
        y = operator(x, w, b, stride, padding, output_padding, size * groups, *rest)
    return y.unflatten(1, (size, -1)), 1


def _fold(tensors, size_at=None):
    """The rule of a pool: every tensor's batch joins the batch dimension; so does the one of `input_size`, if any."""

    def rule(operator, info, in_dims, *args):
        size = info.batch_size
        args = list(args)
        for i in range(tensors):
            args[i] = _join(args[i], in_dims[i], size, 0)
        if size_at is not None:
            args[size_at] = _joined_size(args[size_at], size, 0)
        out = operator(*args)
        if isinstance(out, tuple):
            return tuple(o.unflatten(0, (size, -1)) for o in out), (0,) * len(out)
        return out.unflatten(0, (size, -1)), 0

    return rule


RULES = {
    "conv2d": conv2d,
    "conv2d_max_pool2d": conv2d_max_pool2d,
    "conv2d_batch_norm": conv2d_batch_norm,
    "conv2d_grad_input": conv2d_grad_input,
    "conv2d_grad_weight": conv2d_grad_weight,
    "conv_transpose2d": conv_transpose2d,
    "max_pool2d": _fold(1),
    "max_pool2d_values": _fold(1),
    "max_pool2d_backward": _fold(2, size_at=2),
    "max_pool2d_gather": _fold(2),
    "max_pool2d_indices": _fold(1, size_at=1),
    "avg_pool2d": _fold(1),
    "avg_pool2d_backward": _fold(1, size_at=1),
    "adaptive_max_pool2d": _fold(1),
    "adaptive_max_pool2d_values": _fold(1),
    "adaptive_max_pool2d_backward": _fold(2, size_at=2),
    "adaptive_max_pool2d_gather": _fold(2),
    "adaptive_max_pool2d_indices": _fold(1, size_at=1),
    "adaptive_avg_pool2d": _fold(1),
    "adaptive_avg_pool2d_backward": _fold(1, size_at=1),
    "lp_pool2d": _fold(1),
    "lp_pool2d_backward": _fold(3),
}
