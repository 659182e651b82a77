"""`python -m benchmarks record FOLDER`: the results that are committed, in one command.

Every layer of the networks and the networks as wholes, in both layouts, beside PyTorch. Parts that are measured are
kept in FOLDER/parts: an interrupted recording, or one whose time was up, goes on where it stopped.
"""

import contextlib
import dataclasses
import datetime
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import time

import fastconv
import torch

from . import files, machine, networks, page
from . import formulas as f
from .progress import progress
from .record_plan import Settings, predicted_seconds
from .writers import KIND, SCHEMA

RESULTS, PARTS = "results.json", "parts"
# --quick: fewer rounds and not every number of threads, so that all of it takes about 25 minutes on two cores.
QUICK = {"runs": 3, "seconds": 0.03, "most_seconds": 1.5, "thorough": False}
QUICK_MINUTES = 25


class RecorderFailed(Exception):
    """The measuring process ended by itself; the text says how."""


def record(arguments):
    """Measure what is missing, merge, write the report. Returns the exit status: 1 if a check failed, 130 after
    Ctrl-C, else 0, also when the time was up: what is missing is named, and in the file."""
    folder = pathlib.Path(arguments.folder)
    settings = settings_of(arguments)
    (folder / PARTS).mkdir(parents=True, exist_ok=True)
    files.replace(folder / PARTS / ".gitignore", "*\n")
    recording = Recording(folder, settings, arguments.minutes or (QUICK_MINUTES if arguments.quick else None))
    try:
        recording.run()
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
    except RecorderFailed as failure:
        print(failure, file=sys.stderr)
    data = recording.merged()
    if data["rows"] or data["whole_network"]:
        _write_lines(folder / RESULTS, data)
        page.write(folder / RESULTS, folder / "report")
    missing = data["recording"]["missing"]
    if missing:
        print(f"not measured yet: {len(missing)} of {len(settings.parts())} parts; the same command goes on with them")
    elif not recording.failed:
        recording.remove_parts()
    return 130 if recording.interrupted else 1 if recording.failed else 0


def settings_of(arguments):
    given = {key: tuple(value) for key in ("networks", "batches", "threads", "mallocs", "directions")
             if (value := getattr(arguments, key))}  # fmt: skip
    if "threads" not in given:
        given["threads"] = tuple(dict.fromkeys((1, os.cpu_count())))
    quick = QUICK if arguments.quick else {}
    return Settings(accuracy=fastconv.get_accuracy(), seed=arguments.seed, **quick, **given)


def fingerprint(settings):
    """What a part's numbers depend on beside the machine's mood: other code, settings or hardware make it stale."""
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(settings), sort_keys=True).encode())
    package = pathlib.Path(fastconv.__file__).parent
    for path in sorted([*package.glob("*.py"), *package.glob("_C*.so")]):
        digest.update(path.read_bytes())
    digest.update(f"{torch.__version__} {machine.cpu_model()}".encode())
    return digest.hexdigest()[:16]


class Recording:
    """One call of the command. `failed`, `interrupted`: how it went."""

    def __init__(self, folder, settings, minutes):
        self.folder, self.settings = folder, settings
        self.failed, self.interrupted = False, False
        self._deadline = None if minutes is None else time.monotonic() + 60 * minutes
        self._fingerprint = fingerprint(settings)
        self._predicted = {part: predicted_seconds(settings, part) for part in settings.parts()}
        self._scale = 1.0  # of predictions, from the parts that are measured

    def path(self, part):
        return self.folder / PARTS / f"{part.key()}.json"

    def done(self):
        """{part: its file's content} of what is measured and not stale, in order."""
        found = {}
        for part in self.settings.parts():
            if self.path(part).exists():
                content = json.loads(self.path(part).read_text())
                if content["fingerprint"] == self._fingerprint:
                    found[part] = content
        return found

    def run(self):
        """Measure the parts that are missing, a process for each setting of malloc.

        Raises:
            KeyboardInterrupt, RecorderFailed: what was measured is kept.
        """
        kept = self.done()
        stale = sum(self.path(part).exists() for part in self.settings.parts()) - len(kept)
        if stale:
            print(f"{stale} parts are of another build or other settings: measured again", file=sys.stderr)
        unmeasured = [part for part in self.settings.parts() if part not in kept]
        if kept:
            print(f"{len(kept)} parts are there already", file=sys.stderr)
        if kept:
            self._learn(sum(content["seconds"] for content in kept.values()), kept)
        self._begin, self._all, self._gone = time.monotonic(), unmeasured, []
        self.interrupted = True
        with progress() as bar:
            for malloc in dict.fromkeys(part.malloc for part in unmeasured):
                self._run_process(malloc, [part for part in unmeasured if part.malloc == malloc], bar)
        self.interrupted = False

    def _learn(self, seconds, parts):
        self._scale = seconds / sum(self._predicted[part] for part in parts)

    def _run_process(self, malloc, parts, bar):
        environment = {k: v for k, v in os.environ.items() if not (k.startswith("MALLOC_") and k.endswith("_"))}
        environment |= machine.TUNED_MALLOC if malloc == "tuned" else {}
        command = [sys.executable, "-m", "benchmarks.recorder"]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
            cwd=pathlib.Path(__file__).parents[1],
        ) as process:  # fmt: skip
            try:
                self._send(process, folder=str((self.folder / PARTS).resolve()), fingerprint=self._fingerprint,
                           settings=dataclasses.asdict(self.settings))  # fmt: skip
                bar.stage(f"measuring the machine, {malloc} malloc")
                self._answer(process, "ready", None, bar)
                for part in parts:
                    if self._fits(part):
                        self._send(process, part=dataclasses.asdict(part))
                        answer = self._answer(process, "done", part, bar)
                        self.failed |= answer["failed"]
                        self._tell(part, answer)
            finally:
                with contextlib.suppress(BrokenPipeError):  # words that a process which has died never read
                    process.stdin.close()
                if self.interrupted and process.poll() is None and sys.exc_info()[0]:
                    process.terminate()

    def _send(self, process, **words):
        try:
            process.stdin.write(json.dumps(words) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            self._ended(process)

    def _answer(self, process, expected, part, bar):
        for line in process.stdout:
            words = json.loads(line)
            if expected in words:
                return words
            bar.stage(f"{part.words()}: {words['stage']}")
            bar.to(self._share(part, words["fraction"]))
        self._ended(process)

    def _ended(self, process):
        self.interrupted, self.failed = False, True
        raise RecorderFailed(f"the measuring process ended with status {process.wait()}; its words stand above")

    def _fits(self, part):
        needed = self._predicted[part] * self._scale
        return self._deadline is None or time.monotonic() + needed < self._deadline

    def _share(self, part, fraction):
        gone = sum(self._predicted[each] for each in self._gone) + fraction * self._predicted[part]
        return gone / sum(self._predicted[each] for each in self._all)

    def _tell(self, part, answer):
        self._gone.append(part)
        gone = time.monotonic() - self._begin
        self._learn(gone, self._gone)
        left = sum(self._predicted[each] for each in self._all if each not in self._gone) * self._scale
        if self._deadline is not None:
            left = min(left, max(0.0, self._deadline - time.monotonic()))
        print(
            f"[{len(self._gone)}/{len(self._all)}] {part.words()}: {answer['seconds']:.0f} s"
            f"{', A CHECK FAILED' if answer['failed'] else ''}; {gone / 60:.1f} min gone, about {left / 60:.0f} left",
            file=sys.stderr,
        )

    # --- what came out ----------------------------------------------------------------------------------------

    def merged(self):
        """All parts as one result that `report`, `compare` and `readme` read."""
        parts, settings = self.done(), self.settings
        contents = list(parts.values())
        latest = contents[-1] if contents else None
        peaks = _best_peaks([content["peaks"] for content in contents])
        titles = [networks.NETWORKS[name].title.partition(" (")[0].partition(",")[0] for name in settings.networks]
        return {
            "schema": SCHEMA,
            "kind": KIND,
            "written": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "title": f"{', '.join(titles)}: layer by layer and whole",
            "network": None,
            "source": "python -m benchmarks record",
            "image": None,
            "sweep": [],
            "seed": settings.seed,
            "accuracy": settings.accuracy,
            "interrupted": False,
            "crash": None,
            "machine": {**latest["machine"], "malloc": " and ".join(settings.mallocs)} if latest else None,
            "peers_absent": {},
            "peaks": peaks,
            "peaks_after": {},
            "noise": _noise(contents),
            "peak_rss_bytes": None,
            "recording": {
                "settings": dataclasses.asdict(settings),
                "seconds": sum(content["seconds"] for content in contents),
                "missing": [part.key() for part in settings.parts() if part not in parts],
            },
            "rows": [_under(peaks, row) for content in contents for row in content["rows"]],
            "whole_network": [one for content in contents for one in content["whole_network"]],
        }

    def remove_parts(self):
        for part in self.settings.parts():
            self.path(part).unlink(missing_ok=True)
        (self.folder / PARTS / ".gitignore").unlink(missing_ok=True)
        if not any((self.folder / PARTS).iterdir()):
            (self.folder / PARTS).rmdir()


def _best_peaks(each):
    """{threads: machine.peaks()} with the best rates of all parts: what the machine reaches when it is let."""
    best = {}
    for peaks in each:
        for threads, found in peaks.items():
            known = best.setdefault(threads, found)
            rates = {dtype: max(rate, known["flops_per_second"][dtype])
                     for dtype, rate in found["flops_per_second"].items()}  # fmt: skip
            moved = max(known["bytes_per_second"], found["bytes_per_second"])
            best[threads] = {**known, "flops_per_second": rates, "bytes_per_second": moved}
    return best


def _under(peaks, row):
    """The row with its share of the roofline by these peaks."""
    if not row["speed"]:
        return row
    found = peaks[str(row["threads"])]
    roof = f.roofline_seconds(
        row["flops"], row["minimum_bytes"], found["flops_per_second"][row["dtype"]], found["bytes_per_second"]
    )
    sides = {
        side: {**each, "roofline": float(f"{roof / each['median']:.4g}")}
        for side, each in row["speed"]["sides"].items()
    }
    return {**row, "speed": {**row["speed"], "sides": sides}}


def _noise(contents):
    """How many parts have reason not to be trusted; empty if none."""
    noisy = sum(bool(content["noise"]) for content in contents)
    return [f"other work was running, or times varied, in {noisy} of {len(contents)} parts"] if noisy else []


def _write_lines(path, data):
    """JSON with one line for each row, so that changes can be read."""
    lists = ("rows", "whole_network")
    head = json.dumps({key: value for key, value in data.items() if key not in lists}, indent=1, allow_nan=False)
    body = [head.removesuffix("\n}")]
    for key in lists:
        rows = ",\n".join("  " + json.dumps(row, separators=(",", ":"), allow_nan=False) for row in data[key])
        body.append(f' "{key}": [\n{rows}\n ]')
    files.replace(path, ",\n".join(body) + "\n}\n")
