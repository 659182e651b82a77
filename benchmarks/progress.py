"""A bar with the time left, on standard error, if that is a terminal; nothing otherwise."""

import contextlib
import sys


class _Silent:
    def stage(self, words):
        pass

    def to(self, fraction):
        pass


class _Bar:
    def __init__(self, bar):
        self._bar, self._task = bar, None

    def stage(self, words):
        if self._task is None:
            self._task = self._bar.add_task(words, total=1.0)
        self._bar.update(self._task, description=words)

    def to(self, fraction):
        self._bar.update(self._task, completed=fraction)


@contextlib.contextmanager
def progress():
    """An object with stage(words) and to(fraction of the whole run)."""
    if not sys.stderr.isatty():
        yield _Silent()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield _Bar(bar)
