"""Real pictures as network inputs: scikit-learn ships two photos and 1,797 handwritten digits; nothing is fetched."""

import numpy as np
import torch

IMAGES = {
    "china": "a photo of a temple, 640 x 427, ships with scikit-learn",
    "flower": "a photo of a dahlia, 640 x 427, ships with scikit-learn",
    "digits": "handwritten digits, 8 x 8, ship with scikit-learn (UCI optdigits)",
    "random": "normal noise of the run's seed",
}
# of the ImageNet training set, as every published network uses them
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def load(image, shape, batch=1, seed=0):
    """A float32 batch (batch, channels, height, width), contiguous, for a network whose input is `shape` (c, h, w).

    Photos: resized so that they cover 256/224 of the input, cropped in the middle, scaled to [0, 1] and normalised
    with ImageNet's mean and deviation (one channel: with the picture's own); every other one of a batch is mirrored.
    Digits: as many different ones as the batch has, resized; normalised with their own mean and deviation.
    """
    if image == "random":
        return torch.randn((batch, *shape), generator=torch.Generator().manual_seed(seed))
    if image == "digits":
        pictures = [_fit(picture, shape, crop=False) for picture in _digits(batch)]
    else:
        picture = _fit(_photo(image), shape, crop=True)
        pictures = [picture if i % 2 == 0 else picture[:, ::-1] for i in range(batch)]
    pixels = np.stack(pictures).astype(np.float32) / 255
    if shape[0] == 3 and image != "digits":
        pixels = (pixels - np.float32(_MEAN)) / np.float32(_STD)
    else:
        pixels = (pixels - pixels.mean()) / pixels.std()
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))


def _photo(image):
    from PIL import Image
    from sklearn.datasets import load_sample_image

    return Image.fromarray(load_sample_image(f"{image}.jpg"))


def _digits(batch):
    from PIL import Image
    from sklearn.datasets import load_digits

    values = load_digits().images  # 0 to 16
    chosen = values[np.arange(batch) % len(values)]
    return [Image.fromarray(np.uint8(digit * (255 / 16))) for digit in chosen]


def _fit(picture, shape, crop):
    """The picture as an array (height, width, channels) of 0 to 255 that fits `shape`."""
    from PIL import Image

    channels, height, width = shape
    if channels not in (1, 3):
        raise ValueError(f"a picture has 1 or 3 channels, the network takes {channels}")
    picture = picture.convert("L" if channels == 1 else "RGB")
    if crop:
        scale = max(height / picture.height, width / picture.width) * 256 / 224
        size = round(picture.width * scale), round(picture.height * scale)
        left, top = (size[0] - width) // 2, (size[1] - height) // 2
        picture = picture.resize(size, Image.Resampling.BILINEAR).crop((left, top, left + width, top + height))
    else:
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(picture).reshape(height, width, channels)
