"""A case: every side is checked against float64, then those that passed take turns, for each number of threads."""

import math
import time
from dataclasses import dataclass

import torch
from fastconv import ops

from . import contestants, machine, measure, models, verify
from . import geometry as g
from .operands import Operands, TooLarge
from .peers import PEERS
from .rows import FAILED, FASTCONV, IMPOSSIBLE, OK, REFUSED, facts_of


@dataclass(frozen=True)
class How:
    """accuracy: fastconv's class. peers: those that are here. runs, seconds: the least of a measurement; after
    most_seconds two rounds suffice. memory_at: the numbers of threads with which peaks and what is saved for backward
    are measured too, which takes a few calls; None: with all."""

    accuracy: str
    peers: tuple = ("torch",)
    seed: int = 0
    runs: int = 5
    seconds: float = 1.0
    most_seconds: float = math.inf
    memory_at: tuple | None = None

    def memory(self, threads):
        return self.memory_at is None or threads in self.memory_at


def run_case(case, rows, how, stage=lambda words: None, tick=lambda part: None):
    """Verify and measure a case, with every number of threads that its `rows` have; a problem that PyTorch does not
    take is said so in the rows."""
    counts = list(dict.fromkeys(row.threads for row in rows))
    name = case.name or case.kind
    torch.set_num_threads(max(counts))
    stage(f"verifying {name}")
    try:
        operands = Operands(case, how.seed, machine.free_memory())
        reference = [t.detach() for t in operands.reference(contestants.reference_results)]
        facts = facts_of(case, ops.extension())
        texts = case.texts(how.accuracy)
    except (TooLarge, RuntimeError, ValueError, TypeError, OverflowError) as error:
        for row in rows:
            row.check = f"{IMPOSSIBLE}: {str(error).strip()}"
        return
    for row in rows:
        row.facts, row.texts = facts, texts
    with contestants.accuracy(case.accuracy or how.accuracy), torch.set_grad_enabled(case.direction == "train"):
        for at, threads in enumerate(counts):
            torch.set_num_threads(threads)
            stage(f"verifying {name}")
            trial = Trial(case, operands, reference, [row for row in rows if row.threads == threads], threads, how)
            trial.verify()
            stage(f"measuring {name}")
            trial.measure(lambda done, at=at: tick((at + done) / len(counts)))


class Trial:
    """What is found goes into `rows`, one for each algorithm that was asked for; what the peers do is the same in all.

    reference: the results in float64. The caller sets the number of threads, the accuracy class and the grad mode.
    """

    def __init__(self, case, operands, reference, rows, threads, how):
        self.case, self.operands, self.rows, self.threads, self.how = case, operands, rows, threads, how
        self._reference, self._names = reference, operands.result_names()
        self._layouts = models.layouts_of(case)
        self._torchs = {}  # layout -> PyTorch's errors: what every other side is held to
        self._passed = []  # (contestant, its rows)
        self._eager = {}  # layout -> PyTorch's side, if its checked results are also the yardstick

    def verify(self):
        """Check PyTorch, the peers and fastconv's rows."""
        self._verify_torch()
        for name in self.how.peers:
            for layout in self._layouts:
                if layout in PEERS[name].layouts:
                    self._verify_peer(name, layout)
        for row in self.rows:
            self._verify_row(row)

    def measure(self, tick):
        """Time all that passed, in turns."""
        calls, samples, known = {}, {}, {}
        for number, (one, rows) in enumerate(self._passed):
            calls[number], samples[number], known[number] = one.call, [], one.seconds
            for row in rows:
                row.samples.setdefault(one.side, {})[one.layout] = samples[number]
        if calls:
            how = self.how
            measure.interleaved(calls, samples, how.runs, how.seconds, tick, how.most_seconds, known)

    def _errors(self, one):
        begin = time.perf_counter()
        results = one.results()
        one.seconds = time.perf_counter() - begin
        return verify.errors(results, self._reference)

    def _peak(self, one, tensors):
        return _peak(one, tensors) if self.how.memory(self.threads) else None

    def _verify_torch(self):
        case, wrong, saved = self.case, None, {}
        if case.kind != "linear" and self.how.memory(self.threads):
            saved["torch"] = contestants.saved_for_backward(case, "torch", self.operands.of("nchw"))
        for layout in self._layouts:
            tensors = self.operands.of(layout)
            if case.kind == "avg" and g.is_global(case.fields):  # it is timed as something more exact
                results = contestants.torch_results(case, tensors)
                self._torchs[layout] = verify.errors(results, self._reference)
            else:
                self._eager[layout] = one = contestants.torch_eager(case, tensors, layout, self.threads)
                self._torchs[layout] = self._errors(one)
            wrong = wrong or verify.torch_complaint(self._names, self._torchs[layout], case.dtype)
        for row in self.rows:
            row.errors["torch"], row.saved_bytes = dict(self._torchs), dict(saved)
            if wrong:
                row.check = f"{FAILED}: PyTorch itself, {wrong}"
            elif case.kind == "linear":
                row.check = OK  # torch's layer on both sides: there is no other to check

    def _verify_peer(self, name, layout):
        tensors = self.operands.of(layout)
        if name == "torch" and layout in self._eager:
            one, found = self._eager[layout], self._torchs[layout]
        else:
            try:
                one = PEERS[name].contestant(self.case, tensors, layout, self.threads)
            except contestants.Refused as refusal:
                for row in self.rows:
                    row.unable[name] = str(refusal)
                return
            found = self._errors(one)
        peak = self._peak(one, tensors)
        wrong = verify.peer_complaint(self._names, found, self._torchs[layout], self.case.dtype)
        for row in self.rows:
            row.errors.setdefault(name, {})[layout] = found
            row.peak_bytes.setdefault(name, {})[layout] = peak
            if wrong:
                row.wrong[name] = f"{layout}, {wrong}"
        if not wrong:
            self._passed.append((one, self.rows))

    def _verify_row(self, row):
        """fastconv in each of the case's layouts; one that is wrong fails the row."""
        if row.linear() or row.check.startswith(FAILED):
            return
        sides = []
        try:
            for layout in self.case.layouts:
                sides.append(self._run_row(row, layout))
            if self.how.memory(self.threads):
                first = self.operands.of("nchw")
                row.saved_bytes[FASTCONV] = contestants.saved_for_backward(self.case, FASTCONV, first, row.asked)
        except RuntimeError as error:
            row.check = f"{REFUSED if contestants.is_refusal(error) else FAILED}: {error}"
            return
        for layout, found in row.errors[FASTCONV].items():
            wrong = verify.complaint(self._names, found, self._torchs[layout], row.accuracy, self.case.dtype)
            if wrong:
                row.check = f"{FAILED}: {layout}, {wrong}"
                return
        row.check = OK
        self._passed += [(one, [row]) for one in sides]

    def _run_row(self, row, layout):
        row.choices[layout] = contestants.choices(self.case, layout, row.asked)
        tensors = self.operands.of(layout)
        one = contestants.fastconv_row(self.case, tensors, layout, row.asked)
        row.errors.setdefault(FASTCONV, {})[layout] = self._errors(one)
        row.peak_bytes.setdefault(FASTCONV, {})[layout] = self._peak(one, tensors)
        return one


def _peak(one, tensors):
    """Operands, results, scratch memory and what is held between calls, at the worst moment of a call."""
    one.call()  # the second one, the check's being the first: from now on transformed filters are kept
    extra = machine.peak_extra_bytes(one.call)
    return None if extra is None else tensors.nbytes() + one.held_bytes + extra
