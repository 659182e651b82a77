"""Worked by hand, as in courses: small enough to follow with pencil and paper."""

import pytest
import torch
from kernels import rows

import fastconv.functional as FF
from fastconv import _C
from fastconv import nn as fnn

GENERAL_ROWS = [row["name"] for row in rows() if row["name"] not in ("depthwise", "winograd")]


def image(*planes):
    return torch.tensor([planes], dtype=torch.float32)


@pytest.mark.parametrize("algorithm", ["auto", *GENERAL_ROWS])
def test_three_by_three_with_padding(algorithm):
    x = image([[-7, 1, 1], [3, 2, -8], [0, -7, 6]])
    kernel = image([[1, 0, 1], [0, -1, 0], [0, 0, -1]])
    # y[i][j] = x[i-1][j-1] + x[i-1][j+1] - x[i][j] - x[i+1][j+1], zero outside:
    #   y00 =  0 +  0 + 7 - 2 =  5    y01 = 0 + 0 - 1 + 8 =  7    y02 = 0 + 0 - 1 - 0 = -1
    #   y10 =  0 +  1 - 3 + 7 =  5    y11 = -7 + 1 - 2 - 6 = -14  y12 = 1 + 0 + 8 - 0 =  9
    #   y20 =  0 +  2 - 0 - 0 =  2    y21 = 3 - 8 + 7 - 0 =  2    y22 = 2 + 0 - 6 - 0 = -4
    y = FF.conv2d(x, kernel, padding=1, algorithm=algorithm)
    assert y[0, 0].tolist() == [[5, 7, -1], [5, -14, 9], [2, 2, -4]]
    relu = FF.conv2d_relu(x, kernel, padding=1, algorithm=algorithm)
    assert relu[0, 0].tolist() == [[5, 7, 0], [5, 0, 9], [2, 2, 0]]


@pytest.mark.parametrize("algorithm", ["auto", *GENERAL_ROWS])
def test_corner_of_a_padded_rgb_photo(algorithm):
    x = image([[156, 155], [153, 154]], [[167, 166], [164, 165]], [[163, 162], [160, 161]])
    kernels = image(
        [[-1, -1, 1], [0, 1, -1], [0, 1, 1]], [[1, 0, 0], [1, -1, -1], [1, 0, -1]], [[0, 1, 1], [0, 1, 0], [1, -1, 1]]
    )
    # At the corner only the lower right 2x2 of each kernel meets the photo:
    #   red    1*156 - 1*155 + 1*153 + 1*154 =  308
    #   green -1*167 - 1*166 + 0*164 - 1*165 = -498
    #   blue   1*163 + 0*162 - 1*160 + 1*161 =  164
    y = FF.conv2d(x, kernels, torch.tensor([1.0]), padding=1, algorithm=algorithm)
    assert y[0, 0, 0, 0] == 308 - 498 + 164 + 1 == -25


SIX_BY_SIX = [
    [1, 0, 0, 0, 0, 1], [0, 1, 0, 0, 1, 0], [0, 0, 1, 1, 0, 0],
    [1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 1, 0], [0, 0, 1, 0, 1, 0],
]  # fmt: skip
DIAGONAL = [[1, -1, -1], [-1, 1, -1], [-1, -1, 1]]
VERTICAL = [[-1, 1, -1], [-1, 1, -1], [-1, 1, -1]]


@pytest.mark.parametrize("algorithm", ["auto", *GENERAL_ROWS])
def test_feature_detectors_and_pooling(algorithm):
    x = image(SIX_BY_SIX)
    filters = torch.tensor([[DIAGONAL], [VERTICAL]], dtype=torch.float32)
    y = FF.conv2d(x, filters, algorithm=algorithm)
    assert y.shape == (1, 2, 4, 4)
    # The diagonal from the corner: 1 + 1 + 1 = 3. One to the right: row 0 gives 0, row 1 -1, row 2 -1 + 1: -1 in all.
    assert y[0, 0].tolist() == [[3, -1, -3, -1], [-3, 1, 0, -3], [-3, -3, 0, 1], [3, -2, -2, -1]]
    assert y[0, 1].tolist() == [[-1, -1, -1, -1], [-1, -1, -2, 1], [-1, -1, -2, 1], [-1, 0, -4, 3]]
    strided = FF.conv2d(x, filters, stride=2, algorithm=algorithm)
    assert strided[0, 0, 0].tolist() == [3, -3]
    pooled = FF.max_pool2d(y, 2)
    assert pooled[0].tolist() == [[[3, 0], [3, 1]], [[-1, 1], [0, 3]]]


def test_output_sizes():
    def size(n, kernel, stride):
        return FF.conv2d(torch.zeros(1, 1, n, n), torch.zeros(1, 1, kernel, kernel), stride=stride).shape[-1]

    assert size(7, 3, 1) == 5
    assert size(7, 3, 2) == 3
    layer = fnn.Conv2d(3, 10, 5, padding=2)
    assert layer(torch.zeros(1, 3, 32, 32)).shape == (1, 10, 32, 32)
    assert sum(p.numel() for p in layer.parameters()) == 760  # 10 * (5 * 5 * 3 + 1)


def test_edge_detection_on_a_320_by_280_image():
    x = torch.arange(280 * 320, dtype=torch.float32).reshape(1, 1, 280, 320)
    kernel = torch.tensor([[[[-1.0, 1.0]]]])  # two wide, one high
    y = FF.conv2d(x, kernel)
    assert y.shape == (1, 1, 280, 319)
    assert bool((y == 1).all())
    facts = _C.problem_facts("conv n1c1h280w320 k1r1s2 st1 pd0 dl1 g1 f32 nchw fwd")
    # The book counts 2 multiplications and 1 addition for each of 319 * 280 outputs; we count 2 FLOPs for each MAC.
    assert 319 * 280 * 3 == 267_960
    assert facts["flops"] == 2 * facts["macs"] == 319 * 280 * 4 == 357_280
