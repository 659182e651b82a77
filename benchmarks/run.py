"""`python -m benchmarks run`: verify every case on every side, then measure it, then report.

Cases (cases.py) times numbers of threads times algorithms are the rows; contestants (contestants.py, peers.py) are
the sides; measure.py is the one measuring loop; report.py and writers.py are the readers' and the machines' views.
"""

import contextlib
import pathlib
import sys
from dataclasses import dataclass

import fastconv
import torch

from . import cases, contestants, inputs, machine, measure, models, networks, report, sweep, verify, writers
from .extras import need
from .nearest import did_you_mean
from .operands import Operands, TooLarge
from .peers import PEERS
from .progress import progress
from .rows import FAILED, FASTCONV, IMPOSSIBLE, OK, REFUSED, Row, facts_of
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
        self.interrupted = False
        self._listed = []  # cases of everything but networks
        self._sweep = {}

    # --- arguments ---------------------------------------------------------------------------------------------

    def check_arguments(self):
        """Raises BadArgument before anything is run."""
        arguments = self.arguments
        sources = [arguments.network, arguments.suite, arguments.csv_file, arguments.problem]
        if sum(bool(source) for source in sources) != 1:
            raise BadArgument("name one thing to run: a network, --suite, --problem or --csv-file")
        known = contestants.algorithms()
        arguments.algorithms = list(
            dict.fromkeys(n for name in arguments.algorithms for n in (known if name == "all" else [name]))
        )
        self._names("algorithm", arguments.algorithms, known)
        arguments.peers = list(
            dict.fromkeys(n for name in arguments.peers for n in (PEERS if name == "all" else [name]))
        )
        self._names("peer", arguments.peers, PEERS)
        walked = self.network.walk() if self.network else ()
        layers = [layer.name for layer, _, _ in walked if layer.kind in cases.KINDS]
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
        with contextlib.suppress(KeyboardInterrupt), progress() as bar, contestants.accuracy(self.arguments.accuracy):
            self.interrupted = True
            bar.stage("measuring the machine")
            self.peaks = self._all_peaks(dtypes)
            bar.stage("preparing")
            works, model, x = self._prepare()
            share = 1.0 if model is None else 0.85  # of the bar; the rest is the whole network's
            for number, work in enumerate(works):
                self._one(work, bar, lambda part, at=number: bar.to(share * (at + part) / len(works)))
            if model is not None:
                self._whole_network(model, x, bar, share)
            self.peaks_after = self._all_peaks(dtypes)
            self.interrupted = False

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
                found += cases.of_network(self.network, model, x, arguments.layers)
        else:
            found = sweep.apply(self._listed, {"batch": batches} if batches else {})
        found = sweep.apply(found, self._sweep)
        works = [Work(case, self._rows_of(case)) for case in found]
        self.rows = [row for work in works for row in work.rows]
        whole = self.network and not arguments.layers and not arguments.sweep
        return works, *((model, x) if whole else (None, None))

    def _rows_of(self, case):
        accuracy = case.accuracy or self.arguments.accuracy
        asked = self.arguments.algorithms if case.kind == "conv" else ["auto"]
        return [Row(case, name, threads, accuracy) for threads in self.numbers_of_threads() for name in asked]

    def _one(self, work, bar, tick):
        """Verify and measure a case; a problem that PyTorch does not take is said so in its rows."""
        case, arguments = work.case, self.arguments
        torch.set_num_threads(max(self.numbers_of_threads()))
        bar.stage(f"verifying {case.name or case.kind}")
        try:
            operands = Operands(case, arguments.seed, machine.free_memory())
            reference = [t.detach() for t in operands.reference(contestants.torch_results)]
            facts = facts_of(case, fastconv.ops.extension())
            texts = (
                {}
                if case.kind == "linear"
                else {layout: case.problems(layout, arguments.accuracy)[0][1] for layout in case.layouts}
            )
        except (TooLarge, RuntimeError, ValueError, TypeError, OverflowError) as error:
            for row in work.rows:
                row.check = f"{IMPOSSIBLE}: {str(error).strip()}"
            return
        counts = self.numbers_of_threads()
        with contestants.accuracy(case.accuracy or arguments.accuracy):
            for at, threads in enumerate(counts):
                torch.set_num_threads(threads)
                rows = [row for row in work.rows if row.threads == threads]
                for row in rows:
                    row.facts, row.texts = facts, texts
                bar.stage(f"verifying {case.name or case.kind}")
                with torch.set_grad_enabled(case.direction == "train"):
                    timed = self._verified(case, operands, reference, rows, threads)
                    bar.stage(f"measuring {case.name or case.kind}")
                    part = lambda done, at=at: tick((at + done) / len(counts))  # noqa: E731
                    self._measure(timed, part)

    def _verified(self, case, operands, reference, rows, threads):
        """[(contestant, the rows that its samples belong to)] of the sides that passed."""
        layouts = models.layouts_of(case)
        torchs = self._torchs_errors(case, operands, reference, rows, threads, layouts)
        timed = []
        for name in self._peers():
            for layout in (each for each in layouts if each in PEERS[name].layouts):
                one = self._peer(name, case, operands, reference, rows, threads, layout, torchs)
                if one:
                    timed.append((one, rows))
        for row in rows:
            timed += [(one, [row]) for one in self._ours(case, operands, reference, row, torchs)]
        return timed

    def _torchs_errors(self, case, operands, reference, rows, threads, layouts):
        """PyTorch's errors in each layout: what every other side is held to."""
        found = {}
        saved = None if case.kind == "linear" else contestants.saved_for_backward(case, "torch", operands.of("nchw"))
        for layout in layouts:
            one = contestants.torch_eager(case, operands.of(layout), layout, threads)
            found[layout] = verify.errors(one.results(), reference)
        complaints = (verify.torch_complaint(operands.result_names(), e, case.dtype) for e in found.values())
        wrong = next((words for words in complaints if words), None)
        for row in rows:
            row.errors["torch"] = found
            if saved is not None:
                row.saved_bytes["torch"] = saved
            if wrong:
                row.check = f"{FAILED}: PyTorch itself, {wrong}"
        return found

    def _peer(self, name, case, operands, reference, rows, threads, layout, torchs):
        """The contestant, checked; None if it cannot run the case or computes something else."""
        tensors = operands.of(layout)
        try:
            one = PEERS[name].contestant(case, tensors, layout, threads)
        except contestants.Refused as refusal:
            for row in rows:
                row.unable[name] = str(refusal)
            return None
        found = verify.errors(one.results(), reference)
        peak = _peak(one, tensors)
        wrong = verify.peer_complaint(operands.result_names(), found, torchs[layout], case.dtype)
        for row in rows:
            row.errors.setdefault(name, {})[layout] = found
            row.peak_bytes.setdefault(name, {})[layout] = peak
            if wrong:
                row.wrong[name] = f"{layout}, {wrong}"
            if case.kind == "linear" and not row.check.startswith(FAILED):
                row.check = OK  # torch's layer: there is no other side to check
        return None if wrong else one

    def _ours(self, case, operands, reference, row, torchs):
        """fastconv's contestants of a row, one for each layout; none if it refuses, or one of them is wrong."""
        if case.kind == "linear" or row.check.startswith(FAILED):
            return []
        found, timed, names = row.errors.setdefault(FASTCONV, {}), [], operands.result_names()
        try:
            for layout in case.layouts:
                row.choices[layout] = contestants.choices(case, layout, row.asked)
                tensors = operands.of(layout)
                one = contestants.fastconv_row(case, tensors, layout, row.asked)
                found[layout] = verify.errors(one.results(), reference)
                kept = sum(choice["prepack_bytes"] for choice in row.choices[layout])
                row.peak_bytes.setdefault(FASTCONV, {})[layout] = _peak(one, tensors, kept)
                timed.append(one)
            row.saved_bytes[FASTCONV] = contestants.saved_for_backward(case, FASTCONV, operands.of("nchw"), row.asked)
        except RuntimeError as error:
            row.check = f"{REFUSED if contestants.is_refusal(error) else FAILED}: {error}"
            return []
        for layout in case.layouts:
            if wrong := verify.complaint(names, found[layout], torchs[layout], row.accuracy, case.dtype):
                row.check = f"{FAILED}: {layout}, {wrong}"
                return []
        row.check = OK
        return timed

    def _measure(self, timed, tick):
        calls, samples = {}, {}
        for number, (one, rows) in enumerate(timed):
            calls[number], samples[number] = one.call, []
            for row in rows:
                row.samples.setdefault(one.side, {})[one.layout] = samples[number]
        if calls:
            measure.interleaved(calls, samples, self.arguments.runs, self.arguments.min_time, tick=tick)

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
            one.run(model, x, arguments.runs, 3 * arguments.min_time, bar.stage, part)

    # --- what came out -----------------------------------------------------------------------------------------

    def failed(self):
        return any(row.failed() for row in self.rows) or any(one.failed() for one in self.whole)

    def noise(self):
        """Reasons not to trust the times; None if nobody looked."""
        if not self.peaks:
            return None
        reasons = []
        for threads, before in self.peaks.items():
            spreads = [row.spread() for row in self.rows if row.threads == threads and row.measured()]
            reasons += machine.noise(before, self.peaks_after.get(threads), spreads)
        return list(dict.fromkeys(reasons))


def _peak(one, tensors, kept=0):
    """Operands, results and scratch memory of one call, and what is `kept` between calls."""
    one.call()  # the second one, the check's being the first: from now on transformed filters are kept
    extra = machine.peak_extra_bytes(one.call)
    return None if extra is None else tensors.nbytes() + kept + extra


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
    return 1 if bench.failed() else 130 if bench.interrupted else 0
