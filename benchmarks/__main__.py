"""The command line: `python -m benchmarks describe | run | list`."""

import argparse
import sys

from . import inputs, networks
from .describe import describe


def _one_of(known, what):
    """An argparse type: a name of `known`, or an error with the nearest ones (argparse then exits with status 2)."""

    def parse(word):
        if word not in known:
            near = " or ".join(networks.nearest(word, known))
            raise argparse.ArgumentTypeError(f"unknown {what} '{word}'; did you mean {near}?")
        return word

    return parse


def _positive(kind):
    def parse(word):
        value = kind(word)
        if not value > 0 or value == float("inf"):
            raise argparse.ArgumentTypeError(f"{word} is not a positive number")
        return value

    parse.__name__ = kind.__name__  # argparse names the type in its message for a word that is no number
    return parse


def _names(word):
    return [name for name in word.split(",") if name]


def parser():
    network = {"metavar": "NETWORK", "type": _one_of(networks.NETWORKS, "network")}
    top = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)

    described = commands.add_parser("describe", help="layers, activation memory, parameters, MACs and FLOPs")
    described.add_argument("network", help=", ".join(networks.NETWORKS), **network)

    run = commands.add_parser("run", help="verify and measure a network layer by layer, side by side with PyTorch")
    run.add_argument("network", help=", ".join(networks.NETWORKS), **network)
    option = run.add_argument
    option(
        "--image", type=_one_of(inputs.IMAGES, "image"), help=f"{', '.join(inputs.IMAGES)}; each network has a default"
    )
    option("--batch", type=_positive(int), default=1, help="images at once (default 1)")
    option("--threads", type=_positive(int), help="threads of both sides (default: torch's)")
    option("--pass", dest="direction", choices=("fwd", "train"), default="fwd", help="train: forward and all gradients")
    option("--algorithms", type=_names, default=["auto"], metavar="NAME,...", help="auto (default), or rows to force")
    option(
        "--accuracy", choices=("torch", "fast", "fastest"), default="torch", help="fastconv's class (default torch)"
    )
    option("--layers", type=_names, metavar="NAME,...", help="only these layers, no whole network")
    option("--runs", type=_positive(int), default=5, help="least number of rounds of a measurement (default 5)")
    option(
        "--min-time", type=_positive(float), default=1.0, metavar="SECONDS", help="least time per layer (default 1.0)"
    )
    option("--json", metavar="FILE", help="write everything, every sample included, as JSON")
    option("--seed", type=int, default=0, help="of the random weights (default 0)")

    commands.add_parser("list", help="the networks, algorithms and inputs there are")
    return top


def show_list(file=None):
    import fastconv

    out = file or sys.stdout
    print("networks", file=out)
    for network in networks.NETWORKS.values():
        print(f"  {network.name:18} {network.title}: {network.source}", file=out)
    print("\nalgorithms", file=out)
    for row in fastconv.ops.extension().algorithms():
        does = f"{row['device']} {row['kind']}; {', '.join(row['passes'])}; {' '.join(row['dtypes'])}"
        print(f"  {row['name']:18} {row['summary']} ({does})", file=out)
    print("\ninputs", file=out)
    for name, words in inputs.IMAGES.items():
        print(f"  {name:18} {words}", file=out)


def main(argv=None):
    """Run the command line. Returns the exit status: 0, 1 if a check failed, 2 for bad arguments, 130 after Ctrl-C."""
    top = parser()
    arguments = top.parse_args(argv)
    if arguments.command == "describe":
        describe(networks.NETWORKS[arguments.network]).print()
        return 0
    from fastconv import ExtensionError  # imports torch, which `describe` does not need

    try:
        if arguments.command == "list":
            show_list()
            return 0
        from .run import BadArgument, run

        try:
            return run(arguments)
        except BadArgument as bad:
            top.error(str(bad))
    except ExtensionError as missing:
        print(missing, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
