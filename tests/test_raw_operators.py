"""Raw operators: any argument may come, none may reach a kernel unchecked."""

import pytest
import torch

from test_errors import OPS, W4, X4, X

HUGE = 2**62
CONV_CONF = dict(
    stride=[1, 1], padding=[0] * 4, dilation=[1, 1], groups=1, activation="none", algorithm="auto", accuracy="torch"
)
POOL_CONF = dict(kernel_size=[2, 2], stride=[2, 2], padding=[0, 0], ceil_mode=False)
MAX_CONF = dict(POOL_CONF, dilation=[1, 1])
AVG_CONF = dict(POOL_CONF, count_include_pad=True, divisor_override=None)
OFFSETS = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)

VALID = {
    "conv2d": dict(input=X4(), weight=W4(), bias=None, residual=None, **CONV_CONF),
    "conv2d_max_pool2d": dict(input=X4(), weight=W4(), bias=None, **CONV_CONF),
    "conv2d_batch_norm": dict(
        input=X4(), weight=W4(), bias=None, residual=None, running_mean=X(6), running_var=X(6), gamma=None, beta=None,
        eps=1.0, **CONV_CONF,
    ),
    "conv2d_grad_input": dict(
        grad_output=X(2, 6, 6, 6), weight=W4(), output=None, input_size=[2, 3, 8, 8], **CONV_CONF
    ),
    "conv2d_grad_weight": dict(
        input=X4(), grad_output=X(2, 6, 6, 6), output=None, weight_size=[6, 3, 3, 3], bias=True, **CONV_CONF
    ),
    "max_pool2d": dict(input=X4(), **MAX_CONF),
    "max_pool2d_values": dict(input=X4(), **MAX_CONF),
    "max_pool2d_backward": dict(grad_output=X(2, 3, 4, 4), offsets=OFFSETS, input_size=[2, 3, 8, 8], **MAX_CONF),
    "max_pool2d_gather": dict(input=X4(), offsets=OFFSETS, **MAX_CONF),
    "max_pool2d_indices": dict(offsets=OFFSETS, input_size=[2, 3, 8, 8], **MAX_CONF),
    "avg_pool2d": dict(input=X4(), **AVG_CONF),
    "avg_pool2d_backward": dict(grad_output=X(2, 3, 4, 4), input_size=[2, 3, 8, 8], **AVG_CONF),
    "conv_transpose2d": dict(
        input=X(2, 6, 6, 6), weight=W4(), bias=None, stride=[1, 1], padding=[0, 0], output_padding=[0, 0], groups=1,
        dilation=[1, 1], algorithm="auto", accuracy="torch",
    ),
    "adaptive_max_pool2d": dict(input=X4(), output_size=[3, 4]),
    "adaptive_max_pool2d_values": dict(input=X4(), output_size=[3, 4]),
    "adaptive_max_pool2d_backward": dict(
        grad_output=X(2, 3, 3, 4), offsets=OFFSETS[:, :, :3], input_size=[2, 3, 8, 8], output_size=[3, 4]
    ),
    "adaptive_max_pool2d_gather": dict(input=X4(), offsets=OFFSETS[:, :, :3], output_size=[3, 4]),
    "adaptive_max_pool2d_indices": dict(offsets=OFFSETS[:, :, :3], input_size=[2, 3, 8, 8], output_size=[3, 4]),
    "adaptive_avg_pool2d": dict(input=X4(), output_size=[3, 4]),
    "adaptive_avg_pool2d_backward": dict(
        grad_output=X(2, 3, 3, 4), input_size=[2, 3, 8, 8], output_size=[3, 4]
    ),
    "lp_pool2d": dict(input=X4(), norm_type=2.0, kernel_size=[2, 2], stride=[2, 2], ceil_mode=False),
    "lp_pool2d_backward": dict(
        grad_output=X(2, 3, 4, 4), input=X4(), output=X(2, 3, 4, 4), norm_type=2.0, kernel_size=[2, 2], stride=[2, 2],
        ceil_mode=False,
    ),
}  # fmt: skip

BAD_LISTS = [[], [1], [1, 1, 1], [0, 1], [1, -1], [HUGE, HUGE], [-HUGE, 1], [2**63 - 1, 2**63 - 1]]
BAD_PADDINGS = [[], [0], [0, 0], [-1, 0, 0, 0], [0, 0, 0, -HUGE], [HUGE] * 4, [2**63 - 1] * 4]
BAD_POOL_PADDINGS = [[], [0], [0, 0, 0], [2, 0], [0, -1], [HUGE, HUGE]]
BAD_SIZES = [[], [2, 3, 8], [2, 3, 8, 8, 1], [2, 3, 8, 9], [2, 3, -8, 8], [-1, 3, 8, 8], [2, 4, 8, 8]]
BAD_SIZES += [[HUGE] * 4, [0] * 4]
BAD_WEIGHT_SIZES = [[], [6, 3, 3], [6, 3, 3, 4], [6, 3, 0, 3], [-6, 3, 3, 3], [5, 3, 3, 3], [6, 3, HUGE, HUGE], [0] * 4]
BAD_TENSORS = [X(8), X(3, 8, 8), X(1, 2, 3, 8, 8), X(2, 3, 1, 1), X(), X(2, 3, 0, 8)]
OTHER_KINDS = [X4(dtype=torch.double), X4(dtype=torch.bool), X4(dtype=torch.complex64), X4().to_sparse()]


def bad_values(operator, argument):
    if operator == "conv_transpose2d":
        return bad_transposed(argument)
    if operator.startswith(("adaptive", "lp")):
        return bad_new_pool(operator, argument)
    conv = operator.startswith("conv2d")
    if argument in ("input", "grad_output"):
        other_channels = [X(2, 4, 8, 8)] if argument == "grad_output" or conv else []  # a pool takes any number
        return [*BAD_TENSORS, *other_channels, *OTHER_KINDS[0 if conv else 1 :]]  # and doubles
    if argument == "weight":
        other_sizes = [X4()] if operator == "conv2d_grad_input" else []
        return [t for t in BAD_TENSORS if operator not in ("conv2d", "conv2d_max_pool2d", "conv2d_batch_norm") or t.shape != (2, 3, 1, 1)] + other_sizes + OTHER_KINDS
    if argument in ("bias", "residual", "output") and operator != "conv2d_grad_weight" or argument == "output":
        return [X(5), X(6, 1), X(2, 6, 6, 5), X(), X(6, dtype=torch.double), X(2, 6, 6, 6, dtype=torch.double)]
    if argument in ("running_mean", "running_var", "gamma", "beta"):
        return [X(5), X(6, 1), X(), X(6, dtype=torch.int64), X(6, dtype=torch.complex64), X(6).to_sparse()]
    if argument == "offsets":
        return [OFFSETS[0], OFFSETS[:1], OFFSETS[..., :3], *(OFFSETS.to(t) for t in (torch.int16, torch.int64))]
    if argument == "padding":
        return BAD_PADDINGS if conv else BAD_POOL_PADDINGS
    if argument in ("stride", "dilation", "kernel_size"):
        values = BAD_LISTS if argument != "kernel_size" else [*BAD_LISTS, [9, 9], [2**31, 2**31]]
        return values
    if argument == "input_size":
        return BAD_SIZES if conv else [size for size in BAD_SIZES if size != [2, 3, 8, 9]]  # as many windows
    if argument == "weight_size":
        return BAD_WEIGHT_SIZES
    if argument == "groups":
        return [0, -1, 2, 3, HUGE, -HUGE]
    if argument in ("activation", "algorithm", "accuracy"):
        return ["", "nosuch", "\0"]
    if argument == "divisor_override":
        return [0]
    return []


def bad_transposed(argument):
    if argument in ("input", "weight"):
        bad = [X(8), X(3, 8, 8), X(1, 2, 3, 8, 8), X(), X(2, 6, 0, 8), X(2, 5, 6, 6)]
        return [*bad, *(t for t in OTHER_KINDS[1:]), X(2, 6, 6, 6, dtype=torch.double)]
    if argument == "bias":
        return [X(5), X(3, 1), X(), X(3, dtype=torch.double)]
    if argument in ("stride", "dilation"):
        return BAD_LISTS
    if argument == "padding":
        return [[], [0], [0] * 3, [-1, 0], [9, 0], [HUGE, HUGE], [2**63 - 1] * 2]
    if argument == "output_padding":
        return [[], [0], [0] * 3, [-1, 0], [1, 0], [0, HUGE], [2**63 - 1] * 2]
    if argument == "groups":
        return [0, -1, 4, HUGE, -HUGE]
    return ["", "nosuch", "\0"]


def bad_new_pool(operator, argument):
    if argument in ("input", "grad_output", "output"):
        other = [X(2, 4, 8, 8)] if operator == "lp_pool2d_backward" or argument == "grad_output" else []
        bad = [X(8), X(3, 8, 8), X(1, 2, 3, 8, 8), X(), X(2, 3, 0, 8), *other]
        return [*bad, X4(dtype=torch.int64), X4(dtype=torch.bool), X4(dtype=torch.complex64), X4().to_sparse()]
    if argument == "offsets":
        right = OFFSETS[:, :, :3]
        return [OFFSETS[0], right[:1], OFFSETS, right.to(torch.int16), right.to(torch.int64)]
    if argument == "input_size":
        return [size for size in BAD_SIZES if size != [2, 3, 8, 9]]  # as many windows
    if argument == "output_size":
        return [[], [3], [3, 4, 1], [-1, 4], [HUGE, HUGE], [3, -HUGE], [2**63 - 1] * 2]
    if argument == "norm_type":
        return [0.0, float("nan"), float("inf"), -float("inf")]
    if argument in ("kernel_size", "stride"):
        return [*BAD_LISTS, [9, 9], [2**31, 2**31]] if argument == "kernel_size" else BAD_LISTS
    return []


MALFORMED = [
    pytest.param(operator, argument, i, id=f"{operator} {argument} {i}")
    for operator, arguments in VALID.items()
    for argument in arguments
    for i in range(len(bad_values(operator, argument)))
]


@pytest.mark.parametrize("operator", VALID)
def test_raw_operator(operator):
    getattr(OPS, operator)(**VALID[operator])


@pytest.mark.parametrize("operator, argument, i", MALFORMED)
def test_raw_operator_refuses(operator, argument, i):
    bad = bad_values(operator, argument)[i]
    with pytest.raises((RuntimeError, ValueError, IndexError)):
        getattr(OPS, operator)(**dict(VALID[operator], **{argument: bad}))


def test_raw_operators_with_an_activation_need_the_output():
    for operator in ("conv2d_grad_input", "conv2d_grad_weight"):
        with pytest.raises(ValueError, match="expected output with an activation, and only then"):
            getattr(OPS, operator)(**dict(VALID[operator], activation="relu"))
        with pytest.raises(ValueError, match="expected output with an activation, and only then"):
            getattr(OPS, operator)(**dict(VALID[operator], output=X(2, 6, 6, 6)))


@pytest.mark.parametrize(
    "kernel, stride, dtype",
    [((3, 2), (2, 1), torch.uint8), ((16, 16), (3, 2), torch.int16), ((256, 256), (50, 70), torch.int32)],
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_offsets_of_any_content_stay_inside(kernel, stride, dtype, channels_last):
    # The input is a window of a larger tensor of NaN: whatever is read beside it shows.
    h, w = kernel[0] + 3, kernel[1] + 2
    around = torch.full((4, 5, h + 8, w + 8), float("nan"))
    if channels_last:
        around = around.contiguous(memory_format=torch.channels_last)
    x = around[1:3, 1:4, 4:-4, 4:-4]
    x.copy_(torch.arange(1.0, x.numel() + 1).view(x.shape))
    conf = dict(
        kernel_size=kernel, stride=stride, padding=[k // 2 for k in kernel], dilation=[1, 1], ceil_mode=True
    )
    y, right = OPS.max_pool2d(x, **conf)
    assert right.dtype is dtype
    generator = torch.Generator().manual_seed(0)
    bits = 8 * right.element_size()
    values = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), y.shape, generator=generator)
    offsets = values.to(dtype if dtype is not torch.uint8 else torch.int8).view(dtype)
    gathered = OPS.max_pool2d_gather(x, offsets, **conf)
    assert not gathered.isnan().any()
    back = OPS.max_pool2d_backward(torch.ones_like(y), offsets, x.shape, **conf)
    # Each output gave its one to an element of the input, or to none.
    assert back.min() >= 0 and back.sum() == (gathered != 0).sum()
    indices = OPS.max_pool2d_indices(offsets, x.shape, **conf)
    assert indices.min() >= -1 and indices.max() < h * w
    plane = x.reshape(2, 3, -1).gather(2, indices.clamp(min=0).flatten(2)).view(y.shape)
    assert torch.equal(torch.where(indices < 0, 0, plane), gathered)


@pytest.mark.parametrize(
    "size, windows, dtype",
    [((17, 13), (3, 4), torch.uint8), ((65, 50), (2, 2), torch.int16), ((520, 300), (1, 2), torch.int32)],
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_offsets_of_any_content_stay_inside_adaptive_pools(size, windows, dtype, channels_last):
    h, w = size
    around = torch.full((3, 4, h + 8, w + 8), float("nan"))
    if channels_last:
        around = around.contiguous(memory_format=torch.channels_last)
    x = around[1:2, 1:3, 4:-4, 4:-4]
    x.copy_(torch.arange(1.0, x.numel() + 1).view(x.shape))
    y, right = OPS.adaptive_max_pool2d(x, windows)
    assert right.dtype is dtype
    bits = 8 * right.element_size()
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), y.shape, generator=generator)
    offsets = values.to(dtype if dtype is not torch.uint8 else torch.int8).view(dtype)
    gathered = OPS.adaptive_max_pool2d_gather(x, offsets, windows)
    assert not gathered.isnan().any()
    back = OPS.adaptive_max_pool2d_backward(torch.ones_like(y), offsets, x.shape, windows)
    assert back.min() >= 0 and back.sum() == (gathered != 0).sum()
    indices = OPS.adaptive_max_pool2d_indices(offsets, x.shape, windows)
    assert indices.min() >= -1 and indices.max() < h * w
    plane = x.reshape(1, 2, -1).gather(2, indices.clamp(min=0).flatten(2)).view(y.shape)
    assert torch.equal(torch.where(indices < 0, 0, plane), gathered)
