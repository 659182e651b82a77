"""The files of a run: JSON with everything, CSV with one line per row, Markdown as the terminal shows it."""

import csv
import datetime
import io
import json

from . import files, machine, report
from .peers import PEERS
from .rows import FASTCONV

SCHEMA = 3  # 2 did not know whose layers a row is, nor how malloc was set; 1 had one network beside PyTorch alone
KIND = "fastconv benchmark"


def write(bench):
    """Every file that was asked for."""
    arguments = bench.arguments
    if arguments.json:
        write_json(arguments.json, files.finite(as_json(bench)))
    if arguments.csv:
        files.replace(arguments.csv, as_csv(files.finite(as_json(bench))))
    if arguments.md:
        files.replace(arguments.md, report.row_table(bench).markdown())


def write_json(path, data):
    files.replace(path, json.dumps(data, indent=1, allow_nan=False) + "\n")


class BadResults(Exception):
    """A file that is no result of this benchmark; the text says why."""


def read_json(path):
    """The results in a file.

    Raises:
        BadResults: it cannot be read, is something else, or of another schema.
    """
    try:
        with open(path) as file:
            data = json.load(file)
    except OSError as error:
        raise BadResults(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise BadResults(f"{path} is not JSON: {error}") from None
    if not isinstance(data, dict) or data.get("kind") != KIND:
        raise BadResults(f"{path} is not a result of `python -m benchmarks run --json`")
    if data["schema"] != SCHEMA:
        raise BadResults(f"{path} is of schema {data['schema']}, this version reads schema {SCHEMA}")
    return data


def as_json(bench):
    arguments = bench.arguments
    return {
        "schema": SCHEMA,
        "kind": KIND,
        "written": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "title": report.title(bench),
        "network": arguments.network,
        "source": bench.network.source if bench.network else report.title(bench),
        "image": bench.image,
        "sweep": arguments.sweep,
        "seed": arguments.seed,
        "accuracy": arguments.accuracy,
        "interrupted": bench.interrupted,
        "crash": bench.crash,
        "machine": bench.facts,
        "peers_absent": bench.absent,
        "peaks": bench.peaks,
        "peaks_after": bench.peaks_after,
        "noise": bench.noise(),
        "peak_rss_bytes": machine.peak_rss(),
        "rows": [row.as_json(bench.peaks.get(row.threads)) for row in bench.rows],
        "whole_network": [one.as_json() for one in bench.whole],
    }


# column -> f(row of the JSON); then the figures of every side
_COLUMNS = {
    "name": lambda r: r["name"],
    "source": lambda r: r["source"],
    "problem": lambda r: r["problem"],
    "pass": lambda r: r["pass"],
    "dtype": lambda r: r["dtype"],
    "math": lambda r: r["math"],
    "batch": lambda r: r["batch"],
    "threads": lambda r: r["threads"],
    "malloc": lambda r: r["malloc"],
    "accuracy": lambda r: r["accuracy"],
    "algorithm_asked": lambda r: r["algorithm_asked"],
    "algorithm": lambda r: " ".join(r["algorithm"]),
    "why": lambda r: "; ".join(r["why"]),
    "check": lambda r: r["check"],
    "flops": lambda r: r["flops"],
    "macs": lambda r: r["macs"],
    "executed_multiplications": lambda r: r["executed_macs"],
    "minimum_bytes": lambda r: r["minimum_bytes"],
    "arithmetic_intensity": lambda r: r["arithmetic_intensity"],
    "workspace_bytes": lambda r: r["workspace_bytes"],
    "saved_bytes": lambda r: r["saved_bytes"].get(FASTCONV),
    "torch_saved_bytes": lambda r: r["saved_bytes"].get("torch"),
    "best_peer": lambda r: r["speed"]["best_peer"] if r["speed"] else None,
    "ratio_to_best_peer": lambda r: r["speed"]["ratio"]["median"] if r["speed"] and r["speed"]["ratio"] else None,
}
_SIDE_COLUMNS = {
    "layout": "layout",
    "seconds": "median",
    "spread": "spread",
    "gflops": "gflops",
    "gbytes_per_second": "gbytes_per_second",
    "roofline": "roofline",
}


def side_error(row, side):
    """The largest error of a side in its shown layout; None if it did not run."""
    layouts = row["errors"].get(side, {})
    shown = ((row["speed"] or {}).get("sides", {}).get(side) or {}).get("layout") or next(iter(layouts), None)
    found = layouts.get(shown) or [None]
    return None if None in found else max(found)


def side_peak(row, side):
    """The measured peak memory of a side in its shown layout, in bytes; None if nobody looked."""
    layouts = row["peak_bytes"].get(side, {})
    shown = ((row["speed"] or {}).get("sides", {}).get(side) or {}).get("layout") or next(iter(layouts), None)
    return layouts.get(shown)


def as_csv(data):
    """One line for each row of the JSON; what a side did not do is empty."""
    sides = (FASTCONV, *PEERS)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*_COLUMNS, *(f"{s} {name}" for s in sides for name in (*_SIDE_COLUMNS, "error", "peak_bytes"))])
    for row in data["rows"]:
        speeds = (row["speed"] or {}).get("sides", {})
        cells = [of(row) for of in _COLUMNS.values()]
        for side in sides:
            cells += [speeds.get(side, {}).get(key) for key in _SIDE_COLUMNS.values()]
            cells += [side_error(row, side), side_peak(row, side)]
        writer.writerow(cells)
    return out.getvalue()
