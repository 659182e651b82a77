"""Every CUDA row on a GPU: the cases of test_gpu_rows.py, judged alike. Runs where torch sees a GPU.

`pytest --require-gpu` makes its absence a failure: `make gpu-check` uses it.
"""

import pool_kernels
import pytest
import torch
from hypothesis import given, settings
from kernels import does, rows
from test_gpu_activations import ACTIVATIONS, DENSE, DEPTHWISE, FROM_OUTPUT, forward_flags, run_all
from test_conv_real_sizes import problem_texts
from test_conv_rows import SHAPES, problems
from test_gpu_rows import REAL, cases, check_if_supported

import fastconv
from fastconv import _C

CONV_ROWS = [row["name"] for row in rows("conv", "cuda")]
POOL_ROWS = [row["name"] for row in rows("pool", "cuda")]


@pytest.fixture(autouse=True)
def gpu(request):
    if not torch.cuda.is_available():
        absent = pytest.fail if request.config.getoption("--require-gpu") else pytest.skip
        absent("torch sees no GPU")
    if not CONV_ROWS:
        pytest.fail("there is a GPU, but the extension was built without CUDA kernels: rebuild with FASTCONV_CUDA=1")


def on_gpu(text, row, addresses, threads=1, prepacked=False):
    _C.run_row(text, row, addresses, threads, prepacked, "cuda")


@pytest.mark.parametrize("dtype", ["f32", "f64", "f16", "bf16"])
@pytest.mark.parametrize("name", CONV_ROWS)
def test_small_problems(name, dtype):
    assert sum(check_if_supported(text, name, on_gpu, "cuda", seed=i) for i, text in cases(name, dtype, SHAPES))


@pytest.mark.parametrize("dtype", ["f32", "f64", "f16", "bf16"])
@pytest.mark.parametrize("name", CONV_ROWS)
def test_real_layers(name, dtype):
    assert sum(check_if_supported(text, name, on_gpu, "cuda", seed=i) for i, text in cases(name, dtype, REAL))


@pytest.mark.parametrize("text", sorted(set(problem_texts())))
def test_real_sizes(text):
    """The lists of real problem sizes, in all three passes."""
    assert sum(check_if_supported(text, name, on_gpu, "cuda") for name in CONV_ROWS) >= 2


@settings(max_examples=300, deadline=None, derandomize=True)
@given(text=problems())
def test_any_problem_in_any_layout(text):
    if " i32 " in text:
        return
    for name in CONV_ROWS:
        assert check_if_supported(text, name, on_gpu, "cuda") or name != "direct"


@pytest.mark.parametrize("word", ACTIVATIONS)
@pytest.mark.parametrize("name", CONV_ROWS)
def test_activations(name, word):
    """Forward and gradients, and the bias of grad_input; boundaries, NaN and infinities too."""
    shapes = DEPTHWISE if name == "depthwise" else DENSE
    run_all(name, shapes, "fwd", word, forward_flags(word), on_gpu)
    if word in FROM_OUTPUT:
        run_all(name, shapes, "grad_input", word, f" bias {word}", on_gpu)
        run_all(name, shapes, "grad_weight", word, f" bias {word}", on_gpu)


@pytest.mark.parametrize("dtype", ["f32", "f64", "f16", "bf16"])
@pytest.mark.parametrize("name", POOL_ROWS)
def test_pools(name, dtype):
    row = next(row for row in rows("pool", "cuda") if row["name"] == name)
    for pass_ in pool_kernels.PASSES:
        if does(row, pass_, dtype):
            for layout in ("nchw", "nhwc"):
                for i, text in enumerate(pool_kernels.texts(name, pass_, dtype, layout)):
                    pool_kernels.check(text, seed=i, run=on_gpu)


def test_operators_modules_and_gradients():
    """The Python layers on CUDA tensors: against the CPU in float64."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(8, 12, 3, stride=2), torch.nn.ReLU(), torch.nn.AvgPool2d(2), torch.nn.Flatten(),
    ).double()  # fmt: skip
    x = torch.randn(4, 3, 12, 12, dtype=torch.float64, requires_grad=True)
    net(x).square().sum().backward()
    ours = fastconv.convert(net).cuda()
    y = x.detach().cuda().requires_grad_()
    ours.zero_grad()
    ours(y).square().sum().backward()
    torch.testing.assert_close(y.grad.cpu(), x.grad)
    for a, b in zip(ours.parameters(), net.parameters()):
        torch.testing.assert_close(a.grad.cpu(), b.grad)


def test_a_captured_graph_replays():
    x, w = torch.randn(2, 8, 16, 16, device="cuda"), torch.randn(12, 8, 3, 3, device="cuda")
    fastconv.functional.conv2d(x, w, padding=1)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = fastconv.functional.max_pool2d(fastconv.functional.conv2d_relu(x, w, padding=1), 2)
    x.copy_(torch.randn_like(x))
    graph.replay()
    expected = fastconv.functional.max_pool2d(fastconv.functional.conv2d_relu(x, w, padding=1), 2)
    assert torch.equal(y, expected)


def test_other_streams_and_devices_tensors():
    x, w = torch.randn(2, 8, 16, 16, device="cuda"), torch.randn(12, 8, 3, 3, device="cuda")
    expected = fastconv.functional.conv2d(x, w)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        other = fastconv.functional.conv2d(x, w)
    torch.cuda.synchronize()
    assert torch.equal(other, expected)
    with pytest.raises(RuntimeError):
        fastconv.functional.conv2d(x, w.cpu())
