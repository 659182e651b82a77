"""How good the selector's choices are: every row timed on the networks' convolutions, beside what the selector chose.

    python -m benchmarks.selection --write tests/data/selection.csv     measure, print the table, keep the times
    python -m benchmarks.selection --read tests/data/selection.csv      print the table of times kept before

One thread, batch 1, processor time (which a busy machine disturbs least), the best of several runs in turns. Calls take
48 MB of weights one after the other, because a network's filters come from memory, not from the caches. A row's result
is compared with the row `direct`'s before it is timed.
"""

import argparse
import csv
import itertools
import random
import sys
import time

import fastconv
import torch

from . import files, machine
from .networks import NETWORKS, nearest
from .networks.problems import DIRECTIONS, problems
from .table import Column, Table

_C = fastconv.ops.extension()

COURSE = ("lenet5", "alexnet", "vgg16", "googlenet", "resnet18", "resnet50", "xception", "alphago")
COLD_BYTES, MOST_WEIGHTS = 48 << 20, 16
WITHIN = 1.15  # of the best row's time: as good as the best


def texts(networks=COURSE, most=None, seed=0):
    """The problems of the networks' convolutions in every pass, forward with bias and ReLU, in both layouts; at most
    `most` of them, picked at random by `seed`."""
    found = {}
    for network in networks:
        for layout in ("nchw", "nhwc"):
            for direction in DIRECTIONS:
                for problem in problems(NETWORKS[network], 1, layout, direction):
                    if "k" in problem.fields:
                        fields = {**problem.fields, "accuracy": fastconv.get_accuracy()}
                        found[_C.problem_text(fields)] = None
    all_texts = list(found)
    if most is None or most >= len(all_texts):
        return all_texts
    picked = set(random.Random(seed).sample(all_texts, most))
    return [text for text in all_texts if text in picked]


def rows():
    return [r["name"] for r in _C.algorithms() if r["kind"] == "conv" and r["device"] == "cpu"]


def calls(text):
    """({row: a function that runs the problem with it}, for the rows that take it; after how many calls every
    transformed weight is kept: those seen twice are). The first call of each takes the same weight."""
    p = _C.parse_problem(text)
    g = torch.Generator().manual_seed(0)

    def tensor(n, c, h, w, layout):
        memory_format = torch.channels_last if layout == "nhwc" else torch.contiguous_format
        return torch.randn(n, c, h, w, generator=g).to(memory_format=memory_format)

    layout = "nhwc" if " nhwc " in text else "nchw"
    facts = _C.problem_facts(text)
    x = tensor(p["n"], p["c"], p["h"], p["w"], layout)
    weight = tensor(p["k"], p["c"] // p["groups"], p["r"], p["s"], layout)
    size = weight.numel() * weight.element_size()
    weights = [weight, *(weight.clone() for _ in range(1, min(MOST_WEIGHTS, COLD_BYTES // size)))]
    y = tensor(p["n"], p["k"], facts["p"], facts["q"], layout)
    bias = torch.randn(p["k"], generator=g) if p["bias"] else None
    mask = y if p["activation"] != "none" else None
    conf = (
        [p["stride_h"], p["stride_w"]],
        [p["pad_top"], p["pad_left"], p["pad_bottom"], p["pad_right"]],
        [p["dilation_h"], p["dilation_w"]],
        p["groups"],
        p["activation"],
    )
    ops = torch.ops.fastconv

    def call(row):
        end, turn = (*conf, row, p["accuracy"]), itertools.cycle(weights)
        if p["pass"] == "forward":
            return lambda: ops.conv2d(x, next(turn), bias, None, *end)
        if p["pass"] == "grad_input":
            return lambda: ops.conv2d_grad_input(y, next(turn), mask, x.shape, *end)
        return lambda: ops.conv2d_grad_weight(x, y, mask, weight.shape, p["bias"], *end)[0]

    able = [a["name"] for a in _C.explain(text) if a["ok"]]
    return {row: call(row) for row in able}, 2 if p["pass"] == "grad_weight" else 2 * len(weights)


def seconds(calls, first, least=0.04, runs=7):
    """{row: best of the runs, in processor time}, after `first` calls of each; the rows take turns, so that a moment in
    which the machine is slow does not hit one of them alone, until `least` seconds of each are measured."""
    for call in calls.values():
        for _ in range(first):
            call()  # plans, kept filters
    taken = {row: [] for row in calls}
    while any(len(times) < runs or sum(times) < least for times in taken.values()):
        for row, call in calls.items():
            begin = time.thread_time()
            call()
            taken[row].append(time.thread_time() - begin)
    return {row: min(times) for row, times in taken.items()}


def measure(text):
    """{row: seconds}. Raises ArithmeticError if two rows do not agree."""
    able, first = calls(text)
    found = {row: call() for row, call in able.items()}
    expected = found["direct"]
    scale = expected.abs().max()
    for row, result in found.items():
        if not (result - expected).abs().max() <= 2e-5 * scale:
            raise ArithmeticError(f"{row} and direct disagree on {text}")
    fastconv.clear_filter_cache()
    return seconds(able, first)


def chosen(text):
    return next(a["name"] for a in _C.explain(text) if a["chosen"])


def table(times, source):
    """(the Table, how many choices are within 15 % of the best, of how many) of {text: {row: seconds}}."""
    names = rows()
    columns = [Column("problem"), *(Column(f"{name} us", right=True) for name in names), Column("chosen")]
    result = Table(title=f"One thread, {source}", columns=[*columns, Column("best / chosen", right=True)])
    good = 0
    for text, found in times.items():
        choice = chosen(text)
        ratio = min(found.values()) / found[choice]
        good += ratio * WITHIN >= 1
        cells = [f"{1e6 * found[name]:.1f}" if name in found else "" for name in names]
        result.row([text, *cells, choice, f"{ratio:.2f}" + ("" if ratio * WITHIN >= 1 else " *")])
    result.note(f"{good} of {len(times)} choices within 15 % of the best row (*: not).")
    return result, good


def write(path, times):
    p = _C.processor()
    facts = {
        "cpu": machine.cpu_model(), "isa": _C.cpu_isa(), "multiply_adds": p["multiply_adds"],
        "second_level": p["second_level"], "fastconv": fastconv.__version__, "torch": torch.__version__,
    }  # fmt: skip
    names = rows()
    lines = ["# " + ", ".join(f"{key}={value}" for key, value in facts.items()), ",".join(["problem", *names])]
    for text, found in times.items():
        lines.append(",".join([f'"{text}"', *(f"{found[name]:.3e}" if name in found else "" for name in names)]))
    files.replace(path, "\n".join(lines) + "\n")


def read(path):
    """({fact: value}, {text: {row: seconds}}) of a file that `write` wrote."""
    with open(path, newline="") as file:
        facts = dict(pair.split("=", 1) for pair in file.readline().removeprefix("# ").strip().split(", "))
        times = {
            line.pop("problem"): {name: float(value) for name, value in line.items() if value}
            for line in csv.DictReader(file)
        }
    return facts, times


def main(argv=None):
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--networks", nargs="+", default=list(COURSE), metavar="NETWORK")
    options.add_argument("--most", type=int, metavar="N", help="only N problems, picked at random")
    options.add_argument("--write", metavar="FILE", help="keep the times")
    options.add_argument("--read", metavar="FILE", help="measure nothing: the table of these times")
    arguments = options.parse_args(argv)
    for name in arguments.networks:
        if name not in NETWORKS:
            options.error(f"unknown network '{name}'; did you mean {' or '.join(nearest(name, NETWORKS))}?")
    if arguments.read:
        facts, times = read(arguments.read)
        table(times, facts["cpu"])[0].print()
        return 0
    torch.set_num_threads(1)
    times, wanted = {}, texts(arguments.networks, arguments.most)
    for number, text in enumerate(wanted, 1):
        print(f"\r{number} of {len(wanted)}", end="", file=sys.stderr, flush=True)
        times[text] = measure(text)
    print(file=sys.stderr)
    if arguments.write:
        write(arguments.write, times)
    table(times, machine.cpu_model())[0].print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
