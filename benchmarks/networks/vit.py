"""The patch embedding of ViT-B/16: A. Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021,
arXiv:2010.11929, section 3.1 and table 1: each 16x16 patch becomes a token of 768 numbers."""

from ..blocks import Network
from ..layers import Conv

VIT_PATCHES = Network(
    name="vit-b16-patches",
    title="ViT-B/16, the patch embedding",
    source="Dosovitskiy et al., arXiv:2010.11929, section 3.1",
    input_shape=(3, 224, 224),
    layers=(Conv("patches", 768, 16, stride=16),),
    notes=("14 x 14 = 196 tokens. As a convolution its windows do not overlap: a matrix product of 196 x 768 x 768.",),
)
