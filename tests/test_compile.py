"""torch.compile, torch.export, fake and meta tensors, opcheck, FLOP counts."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

import fastconv
import fastconv.functional as FF

OPS = torch.ops.fastconv


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=dtype)


# --- opcheck: schema, derivative registration, fake kernels, AOT dispatch with static and dynamic shapes -----------

CONV = dict(stride=[2, 1], padding=[1, 0, 1, 2], dilation=[1, 2], groups=2, algorithm="auto", accuracy="torch")
MAX = dict(kernel_size=[3, 2], stride=[2, 1], padding=[1, 1], dilation=[1, 2], ceil_mode=True)
AVG = dict(
    kernel_size=[3, 2], stride=[2, 1], padding=[1, 1], ceil_mode=True, count_include_pad=False, divisor_override=None
)


def gy_like(y, wanted):
    return torch.randn_like(y).requires_grad_(wanted)


def conv_samples(last, wanted):
    format = torch.channels_last if last else torch.contiguous_format
    # One of each kind: none; of an output that masks; of one that counts; of one that needs its input.
    for activation in ("none", "tanh") if last else ("none", "relu", "tanh", "gelu"):
        conf = dict(CONV, activation=activation)
        x, w = randn(2, 4, 5, 4).contiguous(memory_format=format), randn(4, 2, 3, 2)
        b, residual = randn(4), randn(2, 4, 3, 4)
        y = OPS.conv2d(x, w, b, None, **conf)
        gy = randn(*y.shape).contiguous(memory_format=format)
        output = None if activation == "none" else y.detach()
        output = output if output is None else output.requires_grad_(wanted and activation == "tanh")
        x, w, b, gy, residual = (t.requires_grad_(wanted) for t in (x, w, b, gy, residual))
        yield "conv2d", (x, w, b, residual), conf
        yield "conv2d", (x, w, None, None), conf
        if not wanted:  # it has no derivative
            statistics = randn(4, seed=1), randn(4, seed=2).abs(), randn(4, seed=3), randn(4, seed=4)
            yield "conv2d_max_pool2d", (x, w, b), conf
            yield "conv2d_batch_norm", (x, w, b, residual, *statistics, 1e-5), conf
            yield "conv2d_batch_norm", (x, w, None, None, *statistics[:2], None, None, 1e-5), conf
        if activation == "gelu":  # its gradient does not follow from the output
            continue
        yield "conv2d_grad_input", (gy, w, output), dict(conf, input_size=list(x.shape))
        for bias in (False, True):
            yield "conv2d_grad_weight", (x, gy, output), dict(conf, weight_size=list(w.shape), bias=bias)


def transposed_samples(last, wanted):
    format = torch.channels_last if last else torch.contiguous_format
    x, w = randn(2, 4, 3, 4).contiguous(memory_format=format), randn(4, 3, 3, 2)
    x, w, b = (t.requires_grad_(wanted) for t in (x, w, randn(6)))
    for stride, output_padding in (([2, 1], [1, 0]), ([1, 1], [2, 1])):
        conf = dict(stride=stride, padding=[1, 0], output_padding=output_padding, groups=2, dilation=[3, 2])
        conf.update(algorithm="auto", accuracy="torch")
        yield "conv_transpose2d", (x, w, b), conf
        yield "conv_transpose2d", (x, w, None), conf


def pool_samples(last, wanted):
    format = torch.channels_last if last else torch.contiguous_format
    x = randn(2, 3, 6, 5).contiguous(memory_format=format)
    y, offsets = OPS.max_pool2d(x, **MAX)
    gy = torch.randn_like(y).requires_grad_(wanted)
    average = torch.randn_like(OPS.avg_pool2d(x, **AVG)).requires_grad_(wanted)
    x.requires_grad_(wanted)
    size = list(x.shape)
    yield "max_pool2d", (x,), MAX
    yield "max_pool2d_values", (x,), MAX
    yield "max_pool2d_backward", (gy, offsets), dict(MAX, input_size=size)
    yield "max_pool2d_gather", (x, offsets), MAX
    yield "max_pool2d_indices", (offsets,), dict(MAX, input_size=size)
    yield "avg_pool2d", (x,), AVG
    yield "avg_pool2d_backward", (average,), dict(AVG, input_size=size)
    for windows in ([3, 2], [2, 5]):
        z = x.detach().requires_grad_(wanted)
        y, offsets = OPS.adaptive_max_pool2d(z.detach(), windows)
        gy = torch.randn_like(y).requires_grad_(wanted)
        yield "adaptive_max_pool2d", (z, windows), {}
        yield "adaptive_max_pool2d_values", (z, windows), {}
        yield "adaptive_max_pool2d_backward", (gy, offsets, size, windows), {}
        yield "adaptive_max_pool2d_gather", (z, offsets, windows), {}
        yield "adaptive_max_pool2d_indices", (offsets, size, windows), {}
        yield "adaptive_avg_pool2d", (z, windows), {}
        yield "adaptive_avg_pool2d_backward", (gy, size, windows), {}
    z = (x.detach().abs() + 0.5).requires_grad_(wanted)
    conf = dict(norm_type=3.0, kernel_size=[3, 2], stride=[2, 1], ceil_mode=True)
    y = OPS.lp_pool2d(z.detach(), **conf)
    yield "lp_pool2d", (z,), conf
    yield "lp_pool2d_backward", (gy_like(y, wanted), z, y.clone().requires_grad_(wanted)), conf


def all_samples(*args):
    return *conv_samples(*args), *transposed_samples(*args), *pool_samples(*args)


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("wanted", [False, True], ids=["values", "gradients"])
@pytest.mark.parametrize("operator", fastconv.ops.OPERATORS)
def test_opcheck(operator, wanted, last):
    samples = [s for s in all_samples(last, wanted) if s[0] == operator]
    assert samples or (wanted and operator in ("conv2d_batch_norm", "conv2d_max_pool2d"))
    for _, args, kwargs in samples:
        torch.library.opcheck(getattr(OPS, operator).default, args, kwargs)


# --- a network ----------------------------------------------------------------------------------------------------


class Network(torch.nn.Module):
    """Of fastconv's functions, or of torch's where `reference`."""

    def __init__(self):
        super().__init__()
        self.w1 = torch.nn.Parameter(randn(6, 4, 3, 2) / 5)
        self.b1 = torch.nn.Parameter(randn(6))
        self.w2 = torch.nn.Parameter(randn(6, 3, 3, 3) / 5)
        self.reference = False

    def forward(self, x):
        kwargs = dict(stride=(2, 1), padding=1)
        if self.reference:
            y = F.relu(F.conv2d(x, self.w1, self.b1, **kwargs))
            y = F.max_pool2d(y, 2, stride=1, padding=1)
            y = F.conv2d(y, self.w2, None, 1, "same", groups=2) + y
            return F.avg_pool2d(y, 2, ceil_mode=True)
        y = FF.conv2d_relu(x, self.w1, self.b1, **kwargs)
        y = FF.max_pool2d(y, 2, stride=1, padding=1)
        y = FF.conv2d(y, self.w2, None, 1, "same", groups=2, residual=y)
        return FF.avg_pool2d(y, 2, ceil_mode=True)


def values_and_gradients(function, model, x):
    x = x.clone().requires_grad_()
    y = function(x)
    return y, *torch.autograd.grad(y.square().mean(), [x, *model.parameters()])


def check(function, model, x):
    ours = values_and_gradients(function, model, x)
    model.reference = True
    theirs = values_and_gradients(model, model, x)
    model.reference = False
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def counting(backend):
    """A backend that counts its graphs, so that silent recompilation shows."""
    graphs = []

    def compile_graph(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    return compile_graph, graphs


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_static_shapes(backend):
    model = Network()
    compiled = torch.compile(model, fullgraph=True, backend=backend, dynamic=False)
    check(compiled, model, randn(2, 4, 9, 8))
    with torch.no_grad():
        x = randn(2, 4, 9, 8)
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_dynamic_shapes(backend):
    model = Network()
    backend, graphs = counting(backend)
    compiled = torch.compile(model, fullgraph=True, backend=backend, dynamic=True)
    for size in ((2, 4, 9, 8), (3, 4, 12, 7), (5, 4, 21, 6)):
        check(compiled, model, randn(*size))
    assert len(graphs) == 1
    check(compiled, model, randn(2, 4, 9, 8).contiguous(memory_format=torch.channels_last))


def test_compiled_modules():
    model = torch.nn.Sequential(
        fastconv.nn.Conv2d(3, 6, 3), torch.nn.BatchNorm2d(6), torch.nn.ReLU(), fastconv.nn.MaxPool2d(2)
    )
    x = randn(2, 3, 9, 8)
    expected = model(x)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), expected)


def test_indices_in_a_graph():
    x = randn(2, 3, 9, 8)
    compiled = torch.compile(lambda x: FF.max_pool2d(x, 3, 2, return_indices=True), fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(compiled(x), F.max_pool2d(x, 3, 2, return_indices=True)):
        assert torch.equal(ours, theirs)


def test_unbatched_in_a_graph():
    x, w = randn(3, 9, 8), randn(4, 3, 2, 2)
    compiled = torch.compile(lambda x: FF.conv2d(x, w, padding="same"), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), FF.conv2d(x, w, padding="same"))


def algorithms_of(graphs):
    nodes = [node for graph in graphs for node in graph.graph.nodes if node.target is OPS.conv2d.default]
    return [node.args[9] for node in nodes]


def test_forcing_recompiles():
    w = randn(4, 3, 2, 2)
    backend, graphs = counting("eager")
    compiled = torch.compile(lambda x: FF.conv2d(x, w), fullgraph=True, backend=backend)
    compiled(randn(2, 3, 9, 8))
    with fastconv.algorithm("direct"):
        compiled(randn(2, 3, 9, 8))
    compiled(randn(2, 3, 9, 8))
    assert algorithms_of(graphs) == ["auto", "direct"]


def test_forcing_inside_a_graph():
    w = randn(4, 3, 2, 2)
    backend, graphs = counting("eager")

    def function(x):
        with fastconv.algorithm("direct"):
            y = FF.conv2d(x, w)
        return y, FF.conv2d(x, w), FF.conv2d(x, w, algorithm="direct")

    torch.compile(function, fullgraph=True, backend=backend)(randn(2, 3, 9, 8))
    assert algorithms_of(graphs) == ["direct", "auto", "direct"]


def test_autocast_in_a_graph():
    x, w = randn(2, 3, 9, 8), randn(4, 3, 2, 2)

    def function(x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return FF.conv2d(x, w)

    y = torch.compile(function, fullgraph=True, backend="aot_eager")(x)
    assert y.dtype is torch.bfloat16
    torch.testing.assert_close(y, function(x))


# --- export -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict):
    model, x = Network(), randn(2, 4, 9, 8)
    program = torch.export.export(model, (x,), strict=strict)
    assert any(node.target is OPS.conv2d.default for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(x), model(x))


@pytest.mark.filterwarnings("ignore:`isinstance")
@pytest.mark.parametrize("strict", [False, True])
def test_export_with_dynamic_shapes(strict, tmp_path):
    model, x = Network(), randn(2, 4, 9, 8)
    batch, height = torch.export.Dim("batch", min=2, max=64), torch.export.Dim("height", min=6, max=64)
    program = torch.export.export(model, (x,), dynamic_shapes={"x": {0: batch, 2: height}}, strict=strict)
    torch.export.save(program, tmp_path / "program.pt2")
    for exported in (program, program.run_decompositions(), torch.export.load(tmp_path / "program.pt2")):
        for size in ((2, 4, 9, 8), (7, 4, 14, 8)):
            torch.testing.assert_close(exported.module()(randn(*size)), model(randn(*size)))


def test_make_fx():
    model, x = Network(), randn(2, 4, 9, 8)
    mode = dict(tracing_mode="symbolic", _allow_non_fake_inputs=True)
    graph = make_fx(lambda x: values_and_gradients(model, model, x), **mode)(x)
    for ours, theirs in zip(graph(randn(3, 4, 11, 8)), values_and_gradients(model, model, randn(3, 4, 11, 8))):
        torch.testing.assert_close(ours, theirs)


# --- fake and meta tensors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", [False, True])
def test_fake_tensors(last):
    model, x = Network(), randn(2, 4, 9, 8)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    real = values_and_gradients(model, model, x)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        fake = values_and_gradients(model, model, mode.from_tensor(x))
    for a, b in zip(fake, real):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


def test_meta_tensors():
    model, x = Network(), randn(2, 4, 9, 8)
    real = values_and_gradients(model, model, x)
    model, x = model.to("meta"), x.to("meta")
    for a, b in zip(values_and_gradients(model, model, x), real):
        assert a.is_meta and (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("padding", [0, 1])
def test_output_sizes_agree(stride, ceil_mode, padding):
    """The shape formula that has no branch, against the kernels' and torch's."""
    for size in range(3, 14):
        for kernel in (2, 3):
            x = torch.zeros(1, 1, size, size + 1)
            kwargs = dict(kernel_size=kernel, stride=stride, padding=padding, ceil_mode=ceil_mode)
            expected = F.max_pool2d(x, **kwargs).shape
            assert FF.max_pool2d(x, **kwargs).shape == expected == FF.max_pool2d(x.to("meta"), **kwargs).shape


# --- FLOPs ----------------------------------------------------------------------------------------------------------


def count_flops(function, *args):
    with FlopCounterMode(display=False) as counter:
        function(*args).sum().backward()
    return counter.get_flop_counts()["Global"]


def test_flops_are_counted_as_torch_counts_them():
    x, w = randn(2, 4, 9, 8).requires_grad_(), randn(6, 4, 3, 2).requires_grad_()
    ours = count_flops(lambda x, w: FF.conv2d(x, w, padding=1, stride=2), x, w)
    theirs = count_flops(lambda x, w: F.conv2d(x, w, padding=1, stride=2), x, w)
    assert ours[OPS.conv2d] == theirs[torch.ops.aten.convolution] == 2 * 2 * 6 * 5 * 5 * 4 * 3 * 2
    assert sum(ours.values()) == sum(theirs.values())


def test_flops_of_groups():
    # Each pass multiplies as often as the forward. torch 2.13 forgets the groups when it counts grad_weight.
    x, w = randn(2, 4, 9, 8).requires_grad_(), randn(6, 2, 3, 2).requires_grad_()
    counts = count_flops(lambda x, w: FF.conv2d_relu(x, w, groups=2), x, w)
    assert set(counts) == {OPS.conv2d, OPS.conv2d_grad_input, OPS.conv2d_grad_weight}
    assert set(counts.values()) == {2 * 2 * 6 * 7 * 7 * 2 * 3 * 2}
