"""One case with one number of threads: every side is checked against float64, then those that passed take turns."""

from . import contestants, machine, measure, models, verify
from .peers import PEERS
from .rows import FAILED, FASTCONV, OK, REFUSED


class Trial:
    """What is found goes into `rows`, one for each algorithm that was asked for; what the peers do is the same in all.

    reference: the results in float64. The caller sets the number of threads, the accuracy class and the grad mode.
    """

    def __init__(self, case, operands, reference, rows, threads):
        self.case, self.operands, self.rows, self.threads = case, operands, rows, threads
        self._reference, self._names = reference, operands.result_names()
        self._layouts = models.layouts_of(case)
        self._torchs = {}  # layout -> PyTorch's errors: what every other side is held to
        self._passed = []  # (contestant, its rows)

    def verify(self, peers):
        """Check PyTorch, the `peers` (names) and fastconv's rows."""
        self._verify_torch()
        for name in peers:
            for layout in self._layouts:
                if layout in PEERS[name].layouts:
                    self._verify_peer(name, layout)
        for row in self.rows:
            self._verify_row(row)

    def measure(self, rounds, seconds, tick):
        """Time all that passed, in turns."""
        calls, samples = {}, {}
        for number, (one, rows) in enumerate(self._passed):
            calls[number], samples[number] = one.call, []
            for row in rows:
                row.samples.setdefault(one.side, {})[one.layout] = samples[number]
        if calls:
            measure.interleaved(calls, samples, rounds, seconds, tick=tick)

    def _errors(self, one):
        return verify.errors(one.results(), self._reference)

    def _verify_torch(self):
        case, wrong, saved = self.case, None, {}
        if case.kind != "linear":
            saved["torch"] = contestants.saved_for_backward(case, "torch", self.operands.of("nchw"))
        for layout in self._layouts:
            results = contestants.torch_results(case, self.operands.of(layout))
            self._torchs[layout] = verify.errors(results, self._reference)
            wrong = wrong or verify.torch_complaint(self._names, self._torchs[layout], case.dtype)
        for row in self.rows:
            row.errors["torch"], row.saved_bytes = dict(self._torchs), dict(saved)
            if wrong:
                row.check = f"{FAILED}: PyTorch itself, {wrong}"
            elif case.kind == "linear":
                row.check = OK  # torch's layer on both sides: there is no other to check

    def _verify_peer(self, name, layout):
        tensors = self.operands.of(layout)
        try:
            one = PEERS[name].contestant(self.case, tensors, layout, self.threads)
        except contestants.Refused as refusal:
            for row in self.rows:
                row.unable[name] = str(refusal)
            return
        found, peak = self._errors(one), _peak(one, tensors)
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
        row.peak_bytes.setdefault(FASTCONV, {})[layout] = _peak(one, tensors)
        return one


def _peak(one, tensors):
    """Operands, results, scratch memory and what is held between calls, at the worst moment of a call."""
    one.call()  # the second one, the check's being the first: from now on transformed filters are kept
    extra = machine.peak_extra_bytes(one.call)
    return None if extra is None else tensors.nbytes() + one.held_bytes + extra
