"""Train LeNet-5 on scikit-learn's handwritten digits twice: with torch's layers and with fastconv's, from one seed.

    python -m examples.train_lenet_digits [--activation tanh|relu] [--double] [--epochs 7] [--seed 0] [--threads N]

Both models start from the same weights and see the same batches, so their losses differ by rounding alone.
The data: 1,797 digits of 8 x 8 pixels (UCI optdigits), enlarged to 32 x 32; every fifth is held out for the test.
The net: LeCun, Bottou, Bengio, Haffner 1998 with average pooling; tanh as in the paper, or ReLU, which fastconv fuses
with the convolutions. With tanh the two float32 curves stay within 1e-6 to the end. With ReLU a rounding can switch a
unit that sits at its kink, and from then on training amplifies it: torch in NCHW, torch in channels_last and torch in
float64 part in the same way. In float64 (--double) such a switch practically never happens.
"""

import argparse
import copy
import time
from dataclasses import dataclass

import fastconv
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn


@dataclass
class Curve:
    """What one training gave: the loss of every step, the held-out accuracy (0 to 1), seconds spent in the steps."""

    losses: list
    accuracy: float
    seconds: float


# Steps of momentum SGD, which unlike Adam does not hide a wrongly scaled gradient.
RATES, MOMENTUM, BATCH = {"tanh": 0.05, "relu": 0.01}, 0.9, 64


def lenet5(activation="tanh"):
    """LeNet-5 for (n, 1, 32, 32) images and ten classes, with torch's layers; random weights of torch's seed."""
    act = {"tanh": nn.Tanh, "relu": nn.ReLU}[activation]
    model = nn.Sequential(
        nn.Conv2d(1, 6, 5), act(), nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5), act(), nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120), act(),
        nn.Linear(120, 84), act(),
        nn.Linear(84, 10),
    )  # fmt: skip
    for parameter in model.parameters():
        if activation == "relu":  # torch's own start, made for tanh-like gains, lets a ReLU net stall for two epochs
            nn.init.zeros_(parameter) if parameter.dim() == 1 else nn.init.kaiming_normal_(parameter)
    return model


def digits():
    """((train images, labels), (test images, labels)): images float32 (n, 1, 32, 32), mean 0, deviation 1."""
    data = load_digits()
    images = torch.from_numpy(data.images).float().unsqueeze(1)
    images = F.interpolate(images, size=(32, 32), mode="bilinear", align_corners=False)
    labels = torch.from_numpy(data.target)
    held_out = torch.arange(len(images)) % 5 == 4
    mean, deviation = images[~held_out].mean(), images[~held_out].std()
    images = (images - mean) / deviation
    return (images[~held_out], labels[~held_out]), (images[held_out], labels[held_out])


def train(model, data, epochs, seed, rate):
    """Train `model` in place. The seed alone decides the order of the batches. Returns a Curve."""
    (images, labels), (test_images, test_labels) = data
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=MOMENTUM)
    order = torch.Generator().manual_seed(seed)
    losses, start = [], time.perf_counter()
    model.train()
    for _ in range(epochs):
        for picked in torch.randperm(len(images), generator=order).split(BATCH):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images[picked]), labels[picked])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    seconds = time.perf_counter() - start
    model.eval()
    with torch.no_grad():
        accuracy = (model(test_images).argmax(1) == test_labels).float().mean().item()
    return Curve(losses, accuracy, seconds)


def compare(activation="tanh", double=False, epochs=7, seed=0):
    """Train both. Returns {"torch": Curve, "fastconv": Curve}."""
    dtype = torch.float64 if double else torch.float32
    torch.manual_seed(seed)
    start = lenet5(activation).to(dtype)
    models = {"torch": copy.deepcopy(start), "fastconv": fastconv.convert(start, fallback="error")}
    data = [(images.to(dtype), labels) for images, labels in digits()]
    return {name: train(model, data, epochs, seed, RATES[activation]) for name, model in models.items()}


def main(argv=None):
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--activation", choices=RATES, default="tanh")
    options.add_argument("--double", action="store_true", help="in float64")
    options.add_argument("--epochs", type=int, default=7)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--threads", type=int)
    arguments = options.parse_args(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)

    curves = compare(arguments.activation, arguments.double, arguments.epochs, arguments.seed)
    ours, theirs = curves["fastconv"], curves["torch"]
    print(f"{'step':>6} {'torch':>12} {'fastconv':>12} {'difference':>12}")
    steps = len(ours.losses)
    for step in [*range(0, steps, max(1, steps // 12)), steps - 1]:
        a, b = theirs.losses[step], ours.losses[step]
        print(f"{step + 1:6} {a:12.6f} {b:12.6f} {abs(a - b):12.1e}")
    for name, curve in curves.items():
        print(f"{name}: {curve.accuracy:.2%} of the held-out digits, {curve.seconds:.2f} s for {steps} steps")


if __name__ == "__main__":
    main()
