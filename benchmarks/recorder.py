"""The process that measures parts of a recording: record.py starts one for each setting of malloc, which is read when
a process begins. It reads a line of JSON for each part and answers in lines of JSON; each part is a file of its own.
"""

import dataclasses
import json
import pathlib
import sys
import time

import fastconv
import torch

from . import cases, files, inputs, machine, models, networks
from .record_plan import Part, Settings, users
from .rows import Row
from .trial import How, run_case
from .whole import WholeNetwork

# The files are committed: so many digits of each number, and so many rounds of each measurement.
_DIGITS, _SAMPLES = 5, 7
# The machine's peaks are measured before and after each part, so briefly; the best of all are the recording's.
_PEAK_SECONDS = 0.15


def main():
    """Lines in: {"folder", "fingerprint", "settings"}, then {"part"}s. Lines out: {"ready"}, {"stage", "fraction"},
    {"done": a part's key, "failed": whether a check failed, "seconds"}."""
    first = json.loads(sys.stdin.readline())
    settings = Settings(**{key: tuple(v) if isinstance(v, list) else v for key, v in first["settings"].items()})
    fastconv.set_accuracy(settings.accuracy)
    machine.PEAK_SECONDS = _PEAK_SECONDS
    try:
        recorder = Recorder(pathlib.Path(first["folder"]), first["fingerprint"], settings)
        _say(ready=True)
        for line in sys.stdin:
            part = Part(**json.loads(line)["part"])
            begin = time.monotonic()
            failed = recorder.measure(part)
            _say(done=part.key(), failed=failed, seconds=time.monotonic() - begin)
    except KeyboardInterrupt:  # the whole group of processes gets it: record.py speaks
        return 130
    return 0


def _say(**words):
    print(json.dumps(words), flush=True)


class Recorder:
    def __init__(self, folder, fingerprint, settings):
        self.folder, self.fingerprint, self.settings = folder, fingerprint, settings
        machine.ieee()
        self._facts = machine.facts(fastconv, fastconv.ops.extension())
        self._facts["peers"] = {"torch": torch.__version__}
        self._peaks = self._all_peaks()
        self._built = None, None
        self._busy = False

    def _all_peaks(self):
        found = {}
        for threads in self.settings.threads:
            torch.set_num_threads(threads)
            found[threads] = machine.peaks()
        return found

    def measure(self, part):
        """Measure a part and write its file. Returns whether a check failed."""
        begin = time.monotonic()
        network, training = networks.NETWORKS[part.network], part.direction == "train"
        torch.set_num_threads(max(self.settings.threads))  # to prepare
        model = self._model(network)
        x = inputs.load(network.image, network.input_shape, part.batch, self.settings.seed)
        work = self._layers if part.what == "layers" else self._whole
        rows, whole = work(part, network, model, x, training)
        before, self._peaks = self._peaks, self._all_peaks()
        after = self._peaks
        spreads = [row.spread() for row in rows if row.measured()]
        written = {
            "part": dataclasses.asdict(part),
            "fingerprint": self.fingerprint,
            "seconds": time.monotonic() - begin,
            "machine": self._facts,
            "peaks": after,
            "noise": machine.noise(self._of_others(before[max(before)]), after[max(after)], spreads),
            "rows": [self._compact(row) for row in rows],
            "whole_network": [one.as_json() for one in whole],
        }
        path = self.folder / f"{part.key()}.json"
        files.replace(path, json.dumps(rounded(files.finite(written)), allow_nan=False))
        return any(each.failed() for each in (*rows, *whole))

    def _of_others(self, peaks):
        """The peaks, their load without this process's own, which was all busy until then, but for the first part."""
        own = max(self.settings.threads) if self._busy else 0
        self._busy = True
        return {**peaks, "load": max(0.0, peaks["load"] - own)}

    def _model(self, network):
        if self._built[0] != network.name:
            self._built = None, None  # the old one's memory first
            self._built = network.name, models.build(network, self.settings.seed)
        return self._built[1]

    def _how(self, part):
        given = self.settings
        counts = given.threads_of(part)
        at = (max(counts),) if given.looks_at_memory(part) else ()
        return How(given.accuracy, ("torch",), given.seed, given.runs, given.seconds, given.most_seconds, at)

    def _layers(self, part, network, model, x, training):
        named = users(self.settings, part)
        if not named:
            return [], []
        found, rows = cases.of_network(network, model, x, list(named), training), []
        for number in range(len(found)):
            case, found[number] = found[number].replace(direction=part.direction), None  # frees its tensors afterwards
            _say(stage=case.name, fraction=number / len(found))
            mine = [Row(case, "auto", threads, self.settings.accuracy) for threads in self.settings.threads_of(part)]
            run_case(case, mine, self._how(part))
            for row in mine:
                row.layers, row.case = named[case.name], case.replace(tensors=None)
            rows += mine
        return rows, []

    def _whole(self, part, network, model, x, training):
        found = []
        counts = self.settings.threads_of(part)
        for number, threads in enumerate(counts):
            torch.set_num_threads(threads)
            _say(stage=f"{threads} threads", fraction=number / len(counts))
            one = WholeNetwork(network, len(x), part.direction, ["auto"], threads, compiled=False)
            one.run(model, x, self._how(part))
            found.append(one)
        return [], found

    def _compact(self, row):
        found = row.as_json(self._peaks[row.threads])
        samples = {side: {name: _thinned(times) for name, times in each.items()} for side, each in row.samples.items()}
        return {**found, "choices": {}, "samples": samples if row.passed() else {}}


def _thinned(samples):
    """At most _SAMPLES of them, evenly taken: all sides of a row have the same number, so rounds stay together."""
    step = -(-len(samples) // _SAMPLES)
    return samples[:: max(1, step)]


def rounded(value):
    """Every float in _DIGITS digits."""
    if isinstance(value, dict):
        return {key: rounded(v) for key, v in value.items()}
    if isinstance(value, list):
        return [rounded(v) for v in value]
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value


if __name__ == "__main__":
    sys.exit(main())
