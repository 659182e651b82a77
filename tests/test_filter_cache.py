"""Transformed filters are used again only for the very same weight, however it was changed."""

import gc

import pytest
import torch
import torch.nn.functional as F

import fastconv
import fastconv.functional as FF
from fastconv import nn as fnn
from fastconv.filter_cache import clear_filter_cache, filter_cache_info, set_filter_cache_limit


@pytest.fixture(autouse=True)
def fresh_cache():
    clear_filter_cache()
    yield
    set_filter_cache_limit(1024)
    clear_filter_cache()


def same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-3)  # any change of a test here is larger


@pytest.fixture(autouse=True)
def a_row_that_keeps_its_filter():
    """Rows that pack their filter as they go keep none; which one is chosen is not the matter here."""
    with fastconv.algorithm("im2col"):
        yield


def layer_and_input():
    torch.manual_seed(0)
    layer = fnn.Conv2d(16, 32, 3, padding=1)
    x = torch.randn(1, 16, 9, 11)
    with torch.no_grad():
        for _ in range(3):
            layer(x)  # the second call keeps the filter, the third uses it
    assert filter_cache_info().filters >= 1
    assert filter_cache_info().hits >= 1
    return layer, x


def expect_current_weight(layer, x):
    with torch.no_grad():
        for _ in range(3):
            same(layer(x), F.conv2d(x, layer.weight, layer.bias, padding=1))


def fused_step(optimizer):
    def change(layer):
        step = optimizer(layer.parameters(), lr=0.1, fused=True)
        layer.weight.grad, layer.bias.grad = torch.ones_like(layer.weight), torch.ones_like(layer.bias)
        step.step()

    return change


def through_numpy(layer):
    layer.weight.detach().numpy()[3, 2, 1, 0] += 1


def one_bit(layer):
    layer.weight.data.view(torch.int32)[0, 0, 0, 0] ^= 1 << 31


def sign_flips_that_could_cancel(layer):
    layer.weight.data.view(torch.int32)[0, 0, 0, :2] ^= 1 << 31
    layer.weight.data.view(torch.int32)[1, 1, 0, :2] ^= 1 << 31


CHANGES = {
    "fused Adam": fused_step(torch.optim.Adam),
    "fused SGD": fused_step(torch.optim.SGD),
    ".data": lambda layer: layer.weight.data.mul_(-1),
    "numpy": through_numpy,
    "one sign": one_bit,
    "several signs": sign_flips_that_could_cancel,
    "load_state_dict": lambda layer: layer.load_state_dict({"weight": torch.randn(32, 16, 3, 3), "bias": torch.ones(32)}),
    "swapped values": lambda layer: layer.weight.data.copy_(layer.weight.data.flip(0)),
    "a new tensor": lambda layer: setattr(layer, "weight", torch.nn.Parameter(torch.randn(32, 16, 3, 3))),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_changed_weight_is_seen(change):
    layer, x = layer_and_input()
    change(layer)
    expect_current_weight(layer, x)


@pytest.mark.parametrize("at", [0, 140_000, 294_911], ids=["first", "third", "last"])
def test_a_change_in_any_piece_of_a_large_weight_is_seen(at):
    """Hashed in pieces of 256 KiB, by all threads."""
    layer = fnn.Conv2d(128, 256, 3, padding=1, algorithm="im2col")
    x = torch.randn(1, 128, 9, 11)
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            for _ in range(3):
                expect_current_weight(layer, x)
            layer.weight.data.view(-1)[at] += 100
            expect_current_weight(layer, x)
    finally:
        torch.set_num_threads(before)
    assert filter_cache_info().filters == 1


def test_inference_mode():
    with torch.inference_mode():
        weight, x = torch.randn(32, 16, 3, 3), torch.randn(1, 16, 8, 8)
        for _ in range(3):
            same(FF.conv2d(x, weight), F.conv2d(x, weight))
            weight.mul_(1.5)
        for _ in range(3):
            same(FF.conv2d(x, weight), F.conv2d(x, weight))
    assert filter_cache_info().filters == 1


def test_an_address_used_again():
    x = torch.randn(1, 16, 8, 8)
    memory = torch.randn(2, 32 * 16 * 9)
    with torch.no_grad():
        for values in (memory[0].clone(), memory[1].clone(), memory[0].clone()):
            memory[0].copy_(values)
            weight = memory[0].view(32, 16, 3, 3)
            for _ in range(3):
                same(FF.conv2d(x, weight), F.conv2d(x, weight))


def test_training_keeps_nothing():
    layer = fnn.Conv2d(16, 32, 3)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(4):
        optimizer.zero_grad()
        layer(torch.randn(2, 16, 8, 8)).square().mean().backward()
        optimizer.step()
    assert filter_cache_info().filters == 0
    assert filter_cache_info().bytes == 0


def test_a_filter_goes_with_its_weight():
    layer, x = layer_and_input()
    assert filter_cache_info().bytes > 0
    del layer
    gc.collect()
    assert filter_cache_info().bytes == 0


def test_the_limit():
    layers = [layer_and_input(), layer_and_input()]
    kept = filter_cache_info()
    assert kept.filters == 2
    set_filter_cache_limit(0)
    assert filter_cache_info().bytes == 0
    for layer, x in layers:
        expect_current_weight(layer, x)
    assert filter_cache_info().filters == 0
    with pytest.raises(ValueError, match="negative"):
        set_filter_cache_limit(-1)


def test_freezing_skips_the_hash_and_unfreezing_sees_the_change():
    layer, x = layer_and_input()
    fastconv.freeze(layer)
    with torch.no_grad():
        frozen = layer(x)
        layer.weight.data.mul_(2)  # breaks the promise: the kept filter still serves
        same(layer(x), frozen)
        fastconv.unfreeze(layer)
        same(layer(x), F.conv2d(x, layer.weight, layer.bias, padding=1))
    with pytest.raises(TypeError, match="Module"):
        fastconv.freeze(layer.weight)


def test_views_with_gaps_are_never_kept():
    x = torch.randn(1, 16, 8, 8)
    weight = torch.randn(32, 16, 3, 6)[..., ::2]
    with torch.no_grad():
        for _ in range(3):
            same(FF.conv2d(x, weight), F.conv2d(x, weight.contiguous()))
            weight.mul_(2)
    assert filter_cache_info().filters == 0
