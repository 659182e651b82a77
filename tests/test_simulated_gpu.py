"""fastconv.simulated_gpu(): functional, autograd, modules and converted networks through the CUDA kernels."""

import pytest
import torch
import torch.nn.functional as F

import fastconv
import fastconv.functional as FF
from fastconv import _C

ROWS = sorted({row["name"] for row in _C.algorithms() if row["kind"] == "conv" and row["device"] == "simulated"})


def test_the_cuda_kernels_run_and_only_inside():
    x, w = torch.randn(2, 5, 9, 11), torch.randn(7, 5, 3, 3)
    with fastconv.simulated_gpu():
        assert _C.simulated_gpu()
        with pytest.raises(NotImplementedError, match="winograd: does not exist for simulated"):
            FF.conv2d(x, w, padding=1, algorithm="winograd")
        ours = FF.conv2d(x, w, padding=1, algorithm="implicit_gemm")  # a row of GPUs alone
    assert not _C.simulated_gpu()
    torch.testing.assert_close(ours, F.conv2d(x, w, padding=1))
    with pytest.raises(NotImplementedError, match=r"implicit_gemm(: does not exist for cpu| \(cuda\): runs on cuda only)"):
        FF.conv2d(x, w, padding=1, algorithm="implicit_gemm")


def test_it_ends_with_an_exception_too_and_nests():
    with pytest.raises(RuntimeError):
        with fastconv.simulated_gpu():
            with fastconv.simulated_gpu():
                pass
            assert _C.simulated_gpu()
            FF.conv2d(torch.randn(1, 3, 4, 4), torch.randn(2, 2, 3, 3))
    assert not _C.simulated_gpu()


@pytest.mark.parametrize("name", ROWS)
def test_gradients_of_any_order(name):
    g = torch.Generator().manual_seed(0)
    groups = 3 if name == "depthwise" else 1
    x = torch.randn(1, 3, 5, 6, generator=g, dtype=torch.float64, requires_grad=True)
    w = torch.randn(6, 3 // groups, 3, 2, generator=g, dtype=torch.float64, requires_grad=True)
    b = torch.randn(6, generator=g, dtype=torch.float64, requires_grad=True)

    def f(x, w, b):
        return FF.conv2d(x, w, b, stride=(2, 1), padding=1, groups=groups, algorithm=name)

    with fastconv.simulated_gpu():
        assert torch.autograd.gradcheck(f, (x, w, b))
        assert torch.autograd.gradgradcheck(f, (x, w, b))


def test_pools_and_their_gradients():
    x = torch.randn(2, 3, 9, 8, dtype=torch.float64, requires_grad=True)
    with fastconv.simulated_gpu():
        y, indices = FF.max_pool2d(x, 3, 2, 1, return_indices=True)
        expected, expected_indices = F.max_pool2d(x, 3, 2, 1, return_indices=True)
        assert torch.equal(y, expected) and torch.equal(indices, expected_indices)
        assert torch.autograd.gradcheck(lambda x: FF.max_pool2d(x, 3, 2, 1), (x,))
        assert torch.autograd.gradcheck(lambda x: FF.avg_pool2d(x, 3, 2, 1, ceil_mode=True), (x,))
        assert torch.autograd.gradgradcheck(lambda x: FF.avg_pool2d(x, 3, 2), (x,))


@pytest.mark.parametrize("word", ["leaky_relu:0.2", "relu6", "elu:0.5", "sigmoid", "tanh", "silu", "gelu", "hardswish"])
def test_activations_and_their_gradients(word):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1, 3, 5, 4, generator=g, dtype=torch.float64)
    w, b = torch.randn(2, 3, 2, 2, generator=g, dtype=torch.float64), torch.randn(2, generator=g, dtype=torch.float64)
    with fastconv.simulated_gpu():
        fused = FF.conv2d(x, w, b, activation=word)
        torch.testing.assert_close(fused, fastconv._activations.apply(word, F.conv2d(x, w, b)))
        inputs = [t.requires_grad_() for t in (x, w, b)]
        assert torch.autograd.gradcheck(lambda *args: FF.conv2d(*args, activation=word), inputs)


def test_transposed_convolution_and_its_gradients():
    g = torch.Generator().manual_seed(0)
    x, w, b = (torch.randn(*size, generator=g, dtype=torch.float64) for size in ((1, 4, 3, 2), (4, 1, 3, 2), (2,)))

    def function(x, w, b, f=FF):
        return f.conv_transpose2d(x, w, b, 2, 1, 1, 2)

    with fastconv.simulated_gpu():
        torch.testing.assert_close(function(x, w, b), function(x, w, b, F))
        assert torch.autograd.gradcheck(function, [t.requires_grad_() for t in (x, w, b)])


def test_adaptive_and_lp_pools_and_their_gradients():
    x = torch.rand(2, 3, 7, 5, dtype=torch.float64) + 0.5
    pools = (
        lambda f, x: f.adaptive_avg_pool2d(x, (3, 2)),
        lambda f, x: f.adaptive_max_pool2d(x, (3, 2)),
        lambda f, x: f.adaptive_max_pool2d(x, 1),
        lambda f, x: f.lp_pool2d(x, 3, 3, 2, ceil_mode=True),
    )
    with fastconv.simulated_gpu():
        for pool in pools:
            torch.testing.assert_close(pool(FF, x), pool(F, x))
            assert torch.autograd.gradcheck(lambda x, pool=pool: pool(FF, x), x.clone().requires_grad_())
        indices = (f.adaptive_max_pool2d(x, (4, 3), return_indices=True)[1] for f in (FF, F))
        assert torch.equal(*indices)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_converted_network_trains_alike(memory_format):
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(8, 12, 3, stride=2), torch.nn.ReLU(), torch.nn.AvgPool2d(2),
        torch.nn.Flatten(), torch.nn.Linear(12, 5),
    ).to(memory_format=memory_format)  # fmt: skip
    ours = fastconv.convert(net)
    x = torch.randn(4, 3, 12, 12).to(memory_format=memory_format)
    F.cross_entropy(net(x), torch.arange(4)).backward()
    with fastconv.simulated_gpu():
        F.cross_entropy(ours(x), torch.arange(4)).backward()
    for (name, a), b in zip(ours.named_parameters(), net.parameters()):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_explain_lists_the_rows_that_would_run():
    text = "conv n1c8h9w9 k8r3s3 st1 pd1 dl1 g1 f32 nchw fwd"
    assert {row["device"] for row in fastconv.explain(text).rows} <= {"cpu", "cuda"}
    with fastconv.simulated_gpu():
        rows = fastconv.explain(text).rows
    assert {row["device"] for row in rows} == {"simulated"} and sum(row["chosen"] for row in rows) == 1


def test_integers_are_refused_with_every_rows_reason():
    x, w = torch.ones(1, 2, 4, 4, dtype=torch.int32), torch.ones(2, 2, 3, 3, dtype=torch.int32)
    with fastconv.simulated_gpu(), pytest.raises(NotImplementedError, match=r"direct \(simulated\): does not take i32"):
        FF.conv2d(x, w)
