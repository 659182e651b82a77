"""One table, two renderings: rich on a terminal (split into two if it is too wide), plain wide text elsewhere."""

import shutil
import sys
import textwrap
from dataclasses import dataclass, field

_GAP = 2  # blanks between columns


def plain(value):
    return f"{value:,}"


def count(value):
    """3,211,264 -> 3.2M"""
    for unit, size in (("G", 1e9), ("M", 1e6), ("K", 1e3)):
        if value >= size:
            return f"{value / size:.1f}{unit}" if value < 100 * size else f"{value / size:.0f}{unit}"
    return str(value)


def megabytes(value):
    if value < 1000:
        return f"{value} B"
    return f"{value / 1e3:.1f} kB" if value < 1e6 else f"{value / 1e6:.1f} MB"


def milliseconds(seconds):
    ms = seconds * 1e3
    return f"{ms:.0f}" if ms >= 1000 else f"{ms:.1f}" if ms >= 100 else f"{ms:.2f}" if ms >= 1 else f"{ms:.4f}"


def percent(part):
    return f"{part:.0%}" if part < 10 else ">999%"


@dataclass
class Column:
    name: str
    right: bool = False
    group: int = 0  # where a table must be split: 0 in both parts, 1 in the first, 2 in the second


@dataclass
class Table:
    title: str
    columns: list
    rows: list = field(default_factory=list)
    totals: list = field(default_factory=list)
    notes: list = field(default_factory=list)

    def row(self, cells):
        self._require(cells)
        self.rows.append(cells)

    def total(self, cells):
        self._require(cells)
        self.totals.append(cells)

    def note(self, text):
        self.notes.append(text)

    def _require(self, cells):
        if len(cells) != len(self.columns):
            raise ValueError(f"{len(cells)} cells for {len(self.columns)} columns")

    def widths(self):
        lines = [[column.name for column in self.columns], *self.rows, *self.totals]
        return [max(len(line[i]) for line in lines) for i in range(len(self.columns))]

    def part(self, group):
        """The columns of one group, and those of both."""
        keep = [i for i, column in enumerate(self.columns) if column.group in (0, group)]
        pick = lambda line: [line[i] for i in keep]  # noqa: E731
        lines = lambda rows: [line for row in rows if any(line := pick(row))]  # noqa: E731
        return Table(f"{self.title} ({group} of 2)", pick(self.columns), lines(self.rows), lines(self.totals))

    def text(self):
        """Plain text, as wide as it needs to be; notes wrapped at 120 columns."""
        widths = self.widths()

        def line(cells):
            each = zip(cells, widths, self.columns, strict=True)
            padded = (cell.rjust(width) if column.right else cell.ljust(width) for cell, width, column in each)
            return "  ".join(padded).rstrip()

        rule = "-" * (sum(widths) + 2 * len(widths) - 2)
        lines = [self.title, "", line([column.name for column in self.columns]), rule]
        lines += [line(row) for row in self.rows]
        if self.totals:
            lines += [rule, *(line(row) for row in self.totals)]
        return "\n".join(lines) + "\n" + self._notes(120)

    def _notes(self, width):
        wrapped = (textwrap.fill(note, width, subsequent_indent="  ", initial_indent="* ") for note in self.notes)
        return "\n" + "\n".join(wrapped) + "\n" if self.notes else ""

    def markdown(self):
        """The whole table in Markdown; the notes follow as a list."""
        escape = lambda cells: [cell.replace("|", "\\|") or " " for cell in cells]  # noqa: E731
        line = lambda cells: f"| {' | '.join(escape(cells))} |"  # noqa: E731
        rule = ["---:" if column.right else "---" for column in self.columns]
        bold = [[f"**{cell}**" if cell else cell for cell in row] for row in self.totals]
        rows = [[column.name for column in self.columns], rule, *self.rows, *bold]
        notes = "".join(f"* {note}\n" for note in self.notes)
        return f"## {self.title}\n\n" + "\n".join(map(line, rows)) + "\n" + (f"\n{notes}" if notes else "")

    def print(self, file=None):
        file = file or sys.stdout
        if not file.isatty():
            print(self.text(), file=file)
            return
        from rich.console import Console

        width = shutil.get_terminal_size((160, 24)).columns
        console = Console(file=file, width=width)
        fits = sum(self.widths()) + _GAP * (len(self.columns) - 1) <= width
        split = not fits and any(column.group for column in self.columns)
        for part in (self.part(1), self.part(2)) if split else (self,):
            console.print(part._rich())
            console.print()
        console.print(self._notes(width - 2), markup=False, highlight=False)

    def _rich(self):
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        style = {"box": box.SIMPLE_HEAD, "padding": (0, _GAP - 1, 0, 0), "pad_edge": False, "show_edge": False}
        table = RichTable(title=Text(self.title), title_justify="left", **style)
        for column in self.columns:
            table.add_column(Text(column.name), justify="right" if column.right else "left", overflow="fold")
        for i, row in enumerate(self.rows):
            table.add_row(*map(Text, row), end_section=i == len(self.rows) - 1)
        for row in self.totals:
            table.add_row(*map(Text, row), style="bold")
        return table
