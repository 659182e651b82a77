"""`python -m benchmarks run`: verify every case on every side, then measure it, then report.

Cases (cases.py) times numbers of threads times algorithms are the rows (rows.py); contestants (contestants.py,
peers.py) are the sides; trial.py verifies and measures; report.py and writers.py are the readers' and the machines'
views.
"""

import pathlib
import sys
import traceback
from dataclasses import dataclass

import fastconv
import torch

from . import cases, contestants, inputs, machine, models, networks, report, sweep, writers
from .extras import need
from .nearest import did_you_mean
from .peers import PEERS
from .progress import progress
from .rows import Row
from .trial import How, run_case
from .whole import WholeNetwork


class BadArgument(Exception):
    """A command line that cannot be run; the text says why."""


@dataclass
class Work:
    """A case and its rows, of every number of threads and every algorithm."""

    case: object
    rows: list


class Bench:
    """One run. What was measured stays in `rows` and `whole`, whatever interrupts the rest."""

    def __init__(self, arguments):
        self.arguments = arguments
        self.network = networks.NETWORKS[arguments.network] if arguments.network else None
        self.image = (arguments.image or self.network.image) if self.network else None
        self.rows, self.whole = [], []
        self.facts, self.peaks, self.peaks_after = None, {}, {}
        self.absent = {}  # peer that was asked for -> why it is not here
        self.interrupted, self.crash = False, None  # the crash: a traceback
        self._listed = []  # cases of everything but networks
        self._sweep = {}

    # --- arguments ---------------------------------------------------------------------------------------------

    def check_arguments(self):
        """Raises BadArgument before anything is run."""
        arguments = self.arguments
        sources = [arguments.network, arguments.suite, arguments.csv_file, arguments.problem]
        if sum(bool(source) for source in sources) != 1:
            raise BadArgument("name one thing to run: a network, --suite, --problem or --csv-file")
        arguments.accuracy = arguments.accuracy or fastconv.get_accuracy()
        known = contestants.algorithms()
        arguments.algorithms = list(
            dict.fromkeys(n for name in arguments.algorithms for n in (known if name == "all" else [name]))
        )
        self._names("algorithm", arguments.algorithms, known)
        arguments.peers = list(
            dict.fromkeys(n for name in arguments.peers for n in (PEERS if name == "all" else [name]))
        )
        self._names("peer", arguments.peers, PEERS)
        layers = [layer.name for layer, _, _ in self.network.walk()] if self.network else []
        for name in arguments.layers or ():
            if name not in layers:
                had = f"it has {', '.join(layers)}" if layers else "--layers is for networks"
                raise BadArgument(f"{arguments.network or 'this'} has no layer '{name}'; {had}")
        for path in (arguments.json, arguments.csv, arguments.md):
            if path and not pathlib.Path(path).resolve().parent.is_dir():
                raise BadArgument(f"the folder of {path} does not exist")
        try:
            self._sweep = sweep.parse(arguments.sweep)
            self._listed = self._list_cases()
        except ValueError as bad:  # BadSweep, BadSuite, a text that is no problem
            raise BadArgument(str(bad)) from None
        for key in ("batch", "pass"):
            option = getattr(arguments, {"pass": "direction"}.get(key, key))
            if option and key in self._sweep:
                raise BadArgument(f"--{key} and --sweep {key}=... contradict each other")
            if option:
                self._sweep[key] = [option]

    @staticmethod
    def _names(what, given, known):
        for name in given:
            if name not in known:
                raise BadArgument(f"unknown {what} '{name}'; {did_you_mean(name, known)}")

    def _list_cases(self):
        arguments = self.arguments
        if arguments.suite:
            return cases.of_suite(arguments.suite)
        if arguments.csv_file:
            return cases.of_csv(arguments.csv_file)
        return [cases.of_text(text) for text in arguments.problem or ()]

    def numbers_of_threads(self):
        return self.arguments.threads or [torch.get_num_threads()]

    # --- the run -----------------------------------------------------------------------------------------------

    def run(self):
        machine.ieee()
        self.absent = {name: why for name in self.arguments.peers if (why := PEERS[name].absent())}
        self.facts = machine.facts(fastconv, fastconv.ops.extension())
        self.facts["peers"] = {name: PEERS[name].version() for name in self._peers()}
        dtypes = self._sweep.get("dtype") or list(dict.fromkeys(c.dtype for c in self._listed)) or ["f32"]
        self.interrupted = True
        try:
            with progress() as bar, contestants.accuracy(self.arguments.accuracy):
                self._run(bar, dtypes)
                self.interrupted = False
        except KeyboardInterrupt:
            pass
        except BadArgument:
            raise
        except Exception:  # hours may have been measured before it: they are shown and written first
            self.crash = traceback.format_exc()

    def _run(self, bar, dtypes):
        bar.stage("measuring the machine")
        self.peaks = self._all_peaks(dtypes)
        bar.stage("preparing")
        works, model, x = self._prepare()
        share = 1.0 if model is None else 0.85  # of the bar; the rest is the whole network's
        for number, work in enumerate(works):
            part = lambda done, at=number: bar.to(share * (at + done) / len(works))  # noqa: E731
            run_case(work.case, work.rows, self._how(), bar.stage, part)
        if model is not None:
            self._whole_network(model, x, bar, share)
        self.peaks_after = self._all_peaks(dtypes)

    def _how(self):
        given = self.arguments
        return How(given.accuracy, tuple(self._peers()), given.seed, given.runs, given.min_time)

    def _peers(self):
        return [name for name in self.arguments.peers if name not in self.absent]

    def _all_peaks(self, dtypes):
        found = {}
        for threads in self.numbers_of_threads():
            torch.set_num_threads(threads)
            found[threads] = machine.peaks(tuple(dtypes))
        return found

    def _prepare(self):
        """(the work, and of a network that is run as a whole: its model and input)"""
        arguments, batches = self.arguments, self._sweep.pop("batch", None)
        found, model, x = [], None, None
        if self.network:
            model = models.build(self.network, arguments.seed)
            for batch in batches or [1]:
                x = inputs.load(self.image, self.network.input_shape, batch, arguments.seed)
                found += self._cases_of_network(model, x)
        else:
            found = sweep.apply(self._listed, {**self._sweep, **({"batch": batches} if batches else {})})
        if not found:
            raise BadArgument("nothing of this exists in the passes, dtypes and layouts asked for")
        works = [Work(case, self._rows_of(case)) for case in found]
        self.rows = [row for work in works for row in work.rows]
        whole = self.network and not arguments.layers and not arguments.sweep
        return works, *((model, x) if whole else (None, None))

    def _cases_of_network(self, model, x):
        """Forward passes are those of inference, gradients those of training, where layers may differ (normalisation
        is not folded, auxiliary heads run)."""
        passes, found = self._sweep.get("pass", ["fwd"]), []
        for training in (False, True):
            wanted = [direction for direction in passes if (direction != "fwd") == training]
            if wanted:
                try:
                    of_layers = cases.of_network(self.network, model, x, self.arguments.layers, training)
                except ValueError as error:  # batch normalisation wants more than one value per channel
                    raise BadArgument(f"{self.network.name} with batch {len(x)}: {error}") from None
                found += sweep.apply(of_layers, {**self._sweep, "pass": wanted})
        return found

    def _rows_of(self, case):
        accuracy = case.accuracy or self.arguments.accuracy
        asked = self.arguments.algorithms if case.convolves else ["auto"]
        return [Row(case, name, threads, accuracy) for threads in self.numbers_of_threads() for name in asked]

    def _whole_network(self, model, x, bar, share):
        arguments, counts = self.arguments, self.numbers_of_threads()
        for at, threads in enumerate(counts):
            torch.set_num_threads(threads)
            compiled = "torch.compile" in self._peers()
            direction = (self._sweep.get("pass") or ["fwd"])[0]
            if direction not in ("fwd", "train"):
                return
            one = WholeNetwork(self.network, len(x), direction, arguments.algorithms, threads, compiled)
            self.whole.append(one)
            part = lambda done, at=at: bar.to(share + (1 - share) * (at + done) / len(counts))  # noqa: E731
            one.run(model, x, self._how(), bar.stage, part)

    # --- what came out -----------------------------------------------------------------------------------------

    def failed(self):
        return bool(self.crash) or any(each.failed() for each in (*self.rows, *self.whole))

    def noise(self):
        """Reasons not to trust the times; None if nobody looked."""
        if not self.peaks:
            return None
        reasons = []
        for threads, before in self.peaks.items():
            spreads = [row.spread() for row in self.rows if row.threads == threads and row.measured()]
            reasons += machine.noise(before, self.peaks_after.get(threads), spreads)
        return list(dict.fromkeys(reasons))


def check_terminal():
    """Says that rich is missing before the run, not after it."""
    if sys.stdout.isatty() or sys.stderr.isatty():
        need("rich", "for the table and the progress bar")


def run(arguments):
    """Run, print, write. Returns the exit status: 1 if a check failed, 130 after Ctrl-C, else 0."""
    check_terminal()
    bench = Bench(arguments)
    bench.check_arguments()
    bench.run()
    report.show(bench)
    writers.write(bench)
    if bench.crash:
        print(bench.crash, file=sys.stderr)
    return 1 if bench.failed() else 130 if bench.interrupted else 0
