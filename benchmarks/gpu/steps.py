"""Subprocesses with a log, a time limit and a clean end: what `gpu-check` is made of."""

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass, field

# Seconds that a process gets to end after each signal. pytest writes its report after the first.
_SIGNALS = ((signal.SIGINT, 20.0), (signal.SIGTERM, 5.0), (signal.SIGKILL, 10.0))


@dataclass(frozen=True)
class Step:
    """`command` is words; "{seconds}" within one becomes what the step may take, less `reserve`.

    `makes` are files that it leaves: those of an earlier run are removed first. `judge(outcome, log)` tells what the
    exit status cannot: a dict of findings, whose "status" (a word of check.STATUSES) and "errors" (lines), if there,
    override what follows from the exit status.
    """

    name: str
    command: tuple
    limit: float  # seconds
    needs: tuple = ()  # names of steps without whose success this one is not run
    env: dict = field(default_factory=dict)
    judge: object = None
    makes: tuple = ()
    reserve: float = 20.0  # seconds that the command is not told of, to end in


@dataclass(frozen=True)
class Outcome:
    exit: int | None  # None: the command could not be started, or was interrupted
    seconds: float
    timed_out: bool = False


def words(step, seconds):
    """The command of a step that may take `seconds`."""
    told = str(max(1, int(seconds - step.reserve)))
    return [word.replace("{seconds}", told) for word in step.command]


def run(step, log, seconds, root, signals=_SIGNALS):
    """Run a step's command in `root` with its output in the file `log`, for at most `seconds`.

    Its process group is ended before this returns or raises KeyboardInterrupt, so that nothing stays on the GPU.
    """
    begin = time.perf_counter()
    command = words(step, seconds)
    log.parent.mkdir(parents=True, exist_ok=True)
    for path in step.makes:
        path.unlink(missing_ok=True)
    with open(log, "w") as output:
        output.write(f"$ {' '.join([*(f'{k}={v}' for k, v in step.env.items()), *command])}\n")
        output.flush()
        try:
            process = subprocess.Popen(
                command,
                cwd=root,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **step.env},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            output.write(f"error: {error}\n")
            return Outcome(None, time.perf_counter() - begin)
        timed_out = False
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            end(process, signals)
    return Outcome(process.returncode, time.perf_counter() - begin, timed_out)


def end(process, signals=_SIGNALS):
    """End a process and all of its group, gently first."""
    for number, seconds in signals:
        if process.poll() is not None:
            break
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=seconds)
    with contextlib.suppress(ProcessLookupError, PermissionError):  # what the leader left behind
        os.killpg(process.pid, signal.SIGKILL)
