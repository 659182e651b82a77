"""The command line: `python -m benchmarks describe | run | record | report | readme | compare | list`."""

import argparse
import sys

from . import inputs, networks
from .describe import describe
from .extras import MissingExtra
from .nearest import did_you_mean


def _one_of(known, what):
    """An argparse type: a name of `known` (or of what it returns), or an error with the nearest ones (status 2)."""

    def parse(word):
        names = known() if callable(known) else known
        if word not in names:
            raise argparse.ArgumentTypeError(f"unknown {what} '{word}'; {did_you_mean(word, names)}")
        return word

    return parse


def _suite(word):
    from . import suites

    return _one_of(suites.names, "suite")(word.lower())


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


def _threads(word):
    """'1,all' -> [1, 16]"""
    from os import cpu_count

    return list(dict.fromkeys(cpu_count() if part == "all" else _positive(int)(part) for part in _names(word)))


_RUN = """Names one thing to run: a network, or --suite, --problem, --csv-file. Every side's outputs are checked against
float64 first; then all sides take turns. Exit status: 0, 1 if a check failed or a problem cannot be run, 2 for bad
arguments, 130 after Ctrl-C (what was measured is kept)."""


def parser():
    top = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    network = {"metavar": "NETWORK", "type": _one_of(networks.NETWORKS, "network")}

    described = commands.add_parser("describe", help="layers, activation memory, parameters, MACs and FLOPs")
    described.add_argument("network", help=", ".join(networks.NETWORKS), **network)

    run = commands.add_parser("run", help="verify and measure, side by side with PyTorch and others", description=_RUN)
    _add_run_options(run, network)

    recorded = commands.add_parser("record", help="the results that are committed, in one command", description=_RECORD)
    _add_record_options(recorded)

    page = commands.add_parser("report", help="one HTML page and plots of a run's JSON")
    page.add_argument("results", metavar="RESULTS.json")
    page.add_argument("--out", metavar="FOLDER", help="where to write (default: RESULTS-report beside the file)")

    readme = commands.add_parser("readme", help="the project README's tables and picture, from a file of results")
    readme.add_argument("results", metavar="RESULTS.json")
    readme.add_argument("--readme", metavar="FILE", default="README.md", help="default README.md, in this folder")
    readme.add_argument("--check", action="store_true", help="write nothing; exit with 1 if it is out of date")

    compared = commands.add_parser("compare", help="two runs' JSON: what became faster or slower")
    compared.add_argument("old", metavar="OLD.json")
    compared.add_argument("new", metavar="NEW.json")
    compared.add_argument(
        "--fail-above",
        type=_positive(float),
        metavar="PERCENT",
        help="exit with 1 if a row is slower by more than this",
    )
    compared.add_argument(
        "--by",
        choices=("ratio", "latency"),
        default="ratio",
        help="ratio (default): fastconv's time beside torch's of the same run, which cancels the machine's moods; "
        "latency: fastconv's time alone, for one and the same quiet machine",
    )

    commands.add_parser("list", help="the networks, suites, peers, algorithms, inputs and sweep keys there are")
    return top


_RECORD = """Measures every layer of the networks and the networks as wholes, in both layouts, beside PyTorch; writes
FOLDER/results.json and FOLDER/report. What is measured stays in FOLDER/parts until all is: the same command goes on
after an interrupt, or when the time was up. Exit status: 0, 1 if a check failed, 2 for bad arguments, 130 after
Ctrl-C."""


def _list_of(parse):
    return lambda word: [parse(part) for part in _names(word)]


def _add_record_options(recorded):
    from .record_names import DIRECTIONS, MALLOCS, NETWORKS

    option = recorded.add_argument
    option("folder", metavar="FOLDER", help="e.g. benchmarks/results/<machine>")
    option("--quick", action="store_true", help="fewer rounds, and 25 minutes at most")
    option("--minutes", type=_positive(float), help="start no part that would take longer than this in all")
    option(
        "--networks", type=_list_of(_one_of(networks.NETWORKS, "network")), metavar="NAME,...",
        help=f"default {','.join(NETWORKS)}",
    )  # fmt: skip
    option("--batches", type=_list_of(_positive(int)), metavar="N,...", help="default 1,8")
    option("--threads", type=_threads, metavar="N,...", help="default 1,all")
    option(
        "--mallocs", type=_list_of(_one_of(MALLOCS, "malloc")), metavar="NAME,...",
        help=f"default {','.join(MALLOCS)}: glibc's own settings, and one that keeps freed memory",
    )  # fmt: skip
    option(
        "--passes", dest="directions", type=_list_of(_one_of(DIRECTIONS, "pass")), metavar="NAME,...",
        help=f"default {','.join(DIRECTIONS)}",
    )  # fmt: skip
    option("--seed", type=int, default=0, help="of random weights (default 0)")


def _add_run_options(run, network):
    option = run.add_argument
    option("network", nargs="?", help=", ".join(networks.NETWORKS), **network)
    option("--suite", type=_suite, metavar="NAME", help="a list of real-world problems, e.g. onednn:shapes_resnet_50")
    option("--problem", action="append", metavar="TEXT", help="a problem's canonical text; may be given repeatedly")
    option("--csv-file", metavar="FILE", help="a CSV of problems, in the form of benchmarks/suites/*.csv")
    option(
        "--sweep", nargs="+", default=[], metavar="KEY=VALUE,...",
        help="every combination, e.g. batch=1,8,32 dtype=fp32,bf16 layout=nchw,nhwc pass=fwd,grad_input,grad_weight "
        "accuracy=torch,fast; layers alone, not the network as a whole",
    )  # fmt: skip
    option(
        "--image", type=_one_of(inputs.IMAGES, "image"), help=f"{', '.join(inputs.IMAGES)}; each network has a default"
    )
    option("--batch", type=_positive(int), help="images at once (default: 1 for networks, a suite's own)")
    option("--threads", type=_threads, metavar="N,...", help="of every side, e.g. 1,all (default: torch's)")
    option(
        "--pass", dest="direction", choices=("fwd", "grad_input", "grad_weight", "train"),
        help="default fwd, or a problem text's own; train: forward and all gradients",
    )  # fmt: skip
    option(
        "--algorithms", type=_names, default=["auto"], metavar="NAME,...", help="auto (default), rows to force, or all"
    )
    option("--peers", type=_names, default=["torch"], metavar="NAME,...", help="torch (default), others, or all")
    option("--accuracy", choices=("torch", "fast", "fastest"), help="fastconv's class (default: its own)")
    option("--layers", type=_names, metavar="NAME,...", help="only these layers of the network, not the whole")
    option("--runs", type=_positive(int), default=5, help="least number of rounds of a measurement (default 5)")
    option("--min-time", type=_positive(float), default=1.0, metavar="SECONDS", help="least time per case (default 1)")
    option("--json", metavar="FILE", help="write everything, every sample included, as JSON")
    option("--csv", metavar="FILE", help="write one line per row as CSV")
    option("--md", metavar="FILE", help="write the table as Markdown")
    option("--seed", type=int, default=0, help="of random weights and operands (default 0)")


def main(argv=None):
    """Run the command line. Returns the exit status: 0, 1 if a check failed, 2 for bad arguments, 130 after Ctrl-C."""
    top = parser()
    arguments = top.parse_args(argv)
    if arguments.command == "describe":
        describe(networks.NETWORKS[arguments.network]).print()
        return 0
    from fastconv import ExtensionError  # imports torch, which `describe` does not need

    try:
        return _run(top, arguments)
    except (ExtensionError, MissingExtra) as missing:
        print(missing, file=sys.stderr)
        return 1


def _run(top, arguments):
    if arguments.command == "list":
        from .listing import show_list

        show_list()
        return 0
    from .run import BadArgument, run
    from .writers import BadResults

    try:
        if arguments.command == "run":
            return run(arguments)
        if arguments.command == "record":
            from .record import record

            return record(arguments)
        if arguments.command == "compare":
            from .compare import compare

            return compare(arguments)
        if arguments.command == "readme":
            return _readme(top, arguments)
        from .page import write_report

        return write_report(arguments)
    except (BadArgument, BadResults) as bad:
        top.error(str(bad))


def _readme(top, arguments):
    from .readme import BadReadme, write_readme

    try:
        return write_readme(arguments)
    except BadReadme as bad:
        top.error(str(bad))


if __name__ == "__main__":
    sys.exit(main())
