"""`make gpu-check`, `python -m benchmarks.gpu.check`: all that only an NVIDIA GPU can tell of fastconv, in 25 minutes.

Builds the extension for this GPU, runs its instructions, the tests of every CUDA row, the other tests, and those of the
rows under compute-sanitizer, then times the rows against PyTorch. Installs nothing and needs no network. Each step is a
process with a log and a time limit; those that do not need a failed one run all the same. Writes one folder: check.json
and summary.md (after every step), speed.json, logs/, and verified.json, from which the rows' "verified on" is derived.
"""

import argparse
import hashlib
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

from build_tools import verified

from .. import files
from ..machine import git_commit
from . import check_summary, findings, sanitizer
from . import steps as processes
from .steps import Step

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SCHEMA = 1
STATUSES = ("passed", "failed", "timed out", "unavailable", "not run", "interrupted")
GROUPS = ("environment", "build", "atoms", "rows", "tests", "sanitizer", "speed")
_BUDGETS = {False: 1480.0, True: 460.0}  # seconds, by --quick
_LEAST_SECONDS = 10.0  # a step that would get less is not run
_LOGS, _STAGING = "logs", ROOT / "build" / "gpu-check"


def environment_step(python=sys.executable):
    return Step("environment", (python, "-m", "benchmarks.gpu.environment"), 90, judge=findings.environment)


def make_steps(found, folder, quick, known, python=sys.executable):
    """All steps after the first on the GPU that environment.py `found`, with the rows `known` ({row: kind}).

    Every row is tested by a process of its own: after a fault, the GPU answers nothing more in the same process.
    """
    logs = folder / _LOGS
    nvcc = found.get("nvcc")
    path = {"PATH": f"{pathlib.Path(nvcc).parent}:{os.environ.get('PATH', '')}"} if nvcc else {}
    build = {"FASTCONV_CUDA": "1", "TORCH_CUDA_ARCH_LIST": found["capability"]}
    pytest = (python, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    rows_file = "tests/test_cuda_rows.py"

    def row_step(name, expression):
        report = logs / f"rows-{name}.xml"
        command = (*pytest, rows_file, "--require-gpu", f"--junitxml={report}", "-k", expression)
        judge = lambda outcome, log: findings.rows(outcome, report, known)  # noqa: E731
        return Step(f"rows:{name}", command, 240, ("build",), judge=judge, makes=(report,))

    def sanitizer_step(tool):
        words = (python, "-m", "benchmarks.gpu.sanitizer", tool, "--out", str(logs), *(("--quick",) if quick else ()))
        report = logs / f"sanitizer-{tool}.xml"
        judge = lambda outcome, log: findings.sanitizer(outcome, log, report, known)  # noqa: E731
        return Step(f"sanitizer:{tool}", words, 80 if quick else 150, ("build",), judge=judge, makes=(report,))

    report, speed = logs / "tests.xml", folder / "speed.json"
    everything = (*pytest, "tests", f"--ignore={rows_file}", "--continue-on-collection-errors")
    timing = (python, "-m", "benchmarks.gpu.speed", "--out", str(folder), "--budget", "{seconds}")
    return [
        Step("build", (python, "setup.py", "build_ext", "--inplace"), 600, ("environment",), build),
        Step("atoms", ("make", "atoms-check"), 120, ("environment",), path, findings.atoms),
        *(row_step(row, f"[{row}-") for row in known),
        row_step("shared", " and ".join(f"not [{row}-" for row in known)),
        *([] if quick else [
            Step("tests", (*everything, f"--junitxml={report}"), 480, ("build",),
                 judge=lambda outcome, log: findings.tests(outcome, report), makes=(report,)),
        ]),
        *(sanitizer_step(tool) for tool in sanitizer.TOOLS),
        Step("speed", (*timing, *(("--few",) if quick else ())), 90 if quick else 270, ("build",),
             judge=lambda outcome, log: findings.speed(outcome, speed), makes=(speed,)),
    ]  # fmt: skip


def choose(steps, only):
    """The steps that `only` names (or their groups, "rows" for "rows:direct"), and what those need; all without it."""
    if not only:
        return steps
    names = {step.name for step in steps}
    unknown = [word for word in only if not any(name == word or name.split(":")[0] == word for name in names)]
    if unknown:
        raise ValueError(f"no step is called {', '.join(unknown)}; there are {', '.join(sorted(names))}")
    chosen = {step.name for step in steps if step.name in only or step.name.split(":")[0] in only}
    while more := {need for step in steps if step.name in chosen for need in step.needs} & names - chosen:
        chosen |= more
    return [step for step in steps if step.name in chosen]


def slug(gpu):
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")


def source_hashes(root):
    return {row: verified.source_hash(root, main) for row, main in verified.gpu_rows(root).items()}


def cuda_modified(root):
    """Whether csrc/cuda differs from the commit; None outside of a checkout."""
    words = ["git", "status", "--porcelain", "--", "csrc/cuda"]
    try:
        return bool(subprocess.run(words, cwd=root, capture_output=True, text=True, check=True).stdout.strip())
    except (OSError, subprocess.CalledProcessError):
        return None


class Check:
    """One run. `records` {step: what became of it} and the files that are written from it grow step by step.

    first: the step that finds the GPU; its finding "facts" is what `make(facts, folder)` makes the others from.
    """

    def __init__(self, first, make, *, root=ROOT, out=None, budget=1480.0, quick=False, only=(), signals=None):
        self.first, self.make, self.root, self.out = first, make, root, out
        self.budget, self.quick, self.only = budget, quick, only
        self.signals = signals or processes._SIGNALS
        self.began, self.started = time.perf_counter(), _now()
        self.known, self.hashes = findings.kinds(root), source_hashes(root)
        self.git, self.modified = git_commit(), cuda_modified(root)
        self.records, self.facts, self.stopped = {}, None, None
        self.folder = None
        self.selected = []  # of this run; earlier runs' records may be there too

    def left(self):
        return self.budget - (time.perf_counter() - self.began)

    def run(self):
        """Returns the exit status: 0; 1 if anything failed or could not be checked; 130 after an interrupt."""
        staging = self.out or _STAGING
        self.selected = [self.first.name]
        try:
            self._step(self.first, staging / _LOGS)
            self.facts = self.records[self.first.name].pop("facts", None)
            if self.facts is None:
                if self.out:
                    self._open(self.out, staging)
                    self.write()
                return 1
            self._open(self.out or self.root / "benchmarks" / "results" / slug(self.facts["device"]), staging)
            wanted = [name for name in self.only if name != self.first.name]
            steps = choose(self.make(self.facts, self.folder), wanted) if wanted or not self.only else []
            self.selected += [step.name for step in steps]
            self._keep_earlier()
            self.write()
            for step in steps:
                self._step(step, self.folder / _LOGS)
                self.write()
        except KeyboardInterrupt:
            self.stopped = "an interrupt"
        if self.folder is not None:
            for name in self.selected:
                self.records.setdefault(name, _record(name, "not run", why="the run ended before"))
            self.write()
            self._write_verified()
        if self.stopped:
            return 130
        return 0 if self.passed() else 1

    def passed(self):
        return all(self.records.get(name, {}).get("status") == "passed" for name in self.selected)

    def _open(self, folder, staging):
        self.folder = folder
        (folder / _LOGS).mkdir(parents=True, exist_ok=True)
        if folder != staging:
            log = f"{self.first.name}.log"
            shutil.move(staging / _LOGS / log, folder / _LOGS / log)

    def _keep_earlier(self):
        """With --only: steps that another run of the same sources on the same GPU has done stay on record."""
        path = self.folder / "check.json"
        earlier = check_summary.read(path) if self.only else None
        if earlier and all(earlier.get(key) == value for key, value in self._same().items()):
            for record in earlier["steps"]:
                if record["name"] not in self.selected:
                    self.records[record["name"]] = {**record, "earlier": True}

    def _same(self):
        """What must be equal for two runs to speak of the same thing."""
        return {
            "schema": SCHEMA,
            "gpu": self.facts["device"] if self.facts else None,
            "commit": self.git["commit"] if self.git else None,
            "sources": hashlib.sha256("".join(self.hashes.values()).encode()).hexdigest(),
        }

    def _step(self, step, logs):
        lacking = [name for name in step.needs if self.records.get(name, {}).get("status") != "passed"]
        seconds = min(step.limit, self.left())
        if lacking or seconds < min(step.limit, _LEAST_SECONDS):
            why = f"it needs {', '.join(lacking)}" if lacking else f"the budget of {self.budget:g} s was spent"
            self.records[step.name] = _record(step.name, "not run", why=why)
            _say(self.records[step.name])
            return
        log = logs / f"{step.name.replace(':', '-')}.log"
        print(f"{step.name:20} ... at most {seconds:.0f} s", flush=True)
        started = _now()
        record = _record(step.name, "interrupted", started=started, limit=seconds, log=f"{_LOGS}/{log.name}")
        record["command"] = [self._nameless(word) for word in processes.words(step, seconds)]
        self.records[step.name] = record
        begin = time.perf_counter()
        try:
            outcome = processes.run(step, log, seconds, self.root, self.signals)
        finally:
            record["seconds"] = time.perf_counter() - begin
        record["status"] = "timed out" if outcome.timed_out else "passed" if outcome.exit == 0 else "failed"
        record["exit"] = outcome.exit
        if step.judge:
            record.update(step.judge(outcome, log))
        if record["status"] != "passed" and not record.get("errors"):
            record["errors"] = findings.first_errors(log.read_text(errors="replace"))
        _say(record)

    def _nameless(self, word):
        """A word of a command without this machine's folders: results are kept in git."""
        return "python" if word == sys.executable else word.replace(f"{self.root}/", "")

    # Results

    def rows(self):
        return findings.row_results(self.records, self.known)

    def as_json(self):
        order = {name: i for i, name in enumerate(GROUPS)}
        return {
            "kind": "fastconv gpu check",
            **self._same(),
            "modified": self.git["modified"] if self.git else None,
            "cuda_modified": self.modified,
            "started": self.started,
            "seconds": time.perf_counter() - self.began,
            "budget_seconds": self.budget,
            "quick": self.quick,
            "only": list(self.only),
            "stopped_by": self.stopped,
            "passed": self.passed() and not self.stopped,
            "environment": {k: v for k, v in (self.facts or {}).items() if k not in ("executable", "nvcc")},
            "steps": sorted(self.records.values(), key=lambda record: order.get(record["name"].split(":")[0], 0)),
            "rows": self.rows(),
        }

    def write(self):
        data = self.as_json()
        files.replace(self.folder / "check.json", check_summary.json_text(data))
        files.replace(self.folder / "summary.md", check_summary.markdown(data, self._speed()))

    def _speed(self):
        """speed.json, if this check's own step wrote it."""
        known = "measured" in self.records.get("speed", {})
        return check_summary.read(self.folder / "speed.json") if known else None

    def _write_verified(self):
        """The rows that passed, once tests of rows have run; a row whose sources changed meanwhile is none of them."""
        ran = [name for name in self.selected if name.startswith("rows:") and "rows" in self.records.get(name, {})]
        if not ran:
            return
        now = source_hashes(self.root)
        passed = [row for row, result in self.rows().items() if result["passed_all"]]
        record = {
            "gpu": self.facts["device"],
            "commit": self.git["commit"] if self.git else None,
            "cuda_modified": self.modified,
            "date": self.started,
            "rows": {row: now[row] for row in passed if now[row] == self.hashes[row]},
        }
        files.replace(self.folder / "verified.json", check_summary.json_text(record))


def _now():
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _record(name, status, **more):
    return {"name": name, "status": status, **more}


def _say(record):
    seconds = f"{record['seconds']:6.0f} s" if "seconds" in record else ""
    print(f"{record['name']:20} {record['status']:12} {seconds}  {record.get('why', '')}".rstrip(), flush=True)
    for line in record.get("errors", [])[:3]:
        print(f"    {line}", flush=True)


def parser():
    top = argparse.ArgumentParser(prog="python -m benchmarks.gpu.check", description=__doc__)
    option = top.add_argument
    option("--out", type=pathlib.Path, metavar="FOLDER", help="for the results (default benchmarks/results/<gpu>)")
    option("--budget", type=float, metavar="SECONDS", help="for everything (default 1480, with --quick 460)")
    option("--quick", action="store_true", help="without the other tests; less under the sanitizer, fewer layers")
    option("--only", nargs="+", default=[], metavar="STEP", help=f"these and what they need: {', '.join(GROUPS)}, or "
           "one part, such as rows:direct; the other results of the same sources are kept")  # fmt: skip
    return top


def main(argv=None):
    """Run, print, write. Returns the exit status."""
    options = parser().parse_args(argv)
    if options.budget is not None and options.budget < 60:
        parser().error("--budget: less than 60 seconds are not enough for anything")
    known = findings.kinds(ROOT)
    check = Check(
        environment_step(),
        lambda found, folder: make_steps(found, folder, options.quick, known),
        out=options.out.resolve() if options.out else None,
        budget=options.budget or _BUDGETS[options.quick],
        quick=options.quick,
        only=options.only,
    )
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # a job's time limit ends like Ctrl-C
    try:
        status = check.run()
    except ValueError as error:
        print(f"gpu-check: {error}", file=sys.stderr)
        return 2
    finally:
        signal.signal(signal.SIGTERM, before)
    if check.facts is None:
        log = (check.out or _STAGING) / _LOGS / f"{check.first.name}.log"
        why = "interrupted" if check.stopped else "found no NVIDIA GPU that torch can use; nothing was checked"
        print(f"gpu-check: {why} (see {log})", file=sys.stderr)
        return status
    data = check.as_json()
    print("\n" + "\n".join(check_summary.verdict(data)))
    print(f"written: {check.folder}: summary.md, check.json, logs/")
    return status


if __name__ == "__main__":
    sys.exit(main())
