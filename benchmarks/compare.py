"""`python -m benchmarks compare OLD.json NEW.json`: what became faster or slower, and whether that is a failure."""

from . import measure
from .plots import label
from .rows import FASTCONV
from .table import Column, Table, milliseconds
from .writers import read_json

# What names a row in both runs: the same problem, asked for in the same way.
_KEY = ("name", "source", "pass", "dtype", "batch", "threads", "malloc", "accuracy", "algorithm_asked")


def compare(arguments):
    """Prints the comparison. Returns the exit status: 1 if something is slower by more than --fail-above, or was
    measured before and fails now.

    Raises:
        BadResults: a file is no result of this version.
    """
    old, new = read_json(arguments.old), read_json(arguments.new)
    limit = None if arguments.fail_above is None else arguments.fail_above / 100
    changes = find_changes(old["rows"], new["rows"], arguments.by)
    _table(changes, arguments.by, limit).print()
    for words in _remarks(old, new, changes, arguments.by):
        print(words)
    slower = [change for change in changes if limit is not None and regressed(change, limit)]
    broken = [change for change in changes if change["broken"]]
    for words, found in (("slower", slower), ("FAILED, measured before", broken)):
        if found:
            print(f"{words}: {', '.join(change['label'] for change in found)}")
    return 1 if slower or broken else 0


def _key(row):
    return (*(row[key] for key in _KEY), tuple(row["layouts"]), tuple(sorted(row["fields"].items())))


def _figure(row, by):
    """{"median", "q1", "q3"} of what a row is judged by, lower being better; None if it has none.

    ratio: fastconv's time in times of PyTorch's eager call, quartiles from both sides' spread."""
    sides = (row["speed"] or {}).get("sides", {})
    ours = sides.get(FASTCONV)
    if by == "latency" or not ours:
        return ours and {key: ours[key] for key in ("median", "q1", "q3")}
    theirs = sides.get("torch")
    if not theirs:
        return None
    samples = row["samples"]
    return measure.ratio(samples[FASTCONV][ours["layout"]], samples["torch"][theirs["layout"]])


def find_changes(old, new, by="ratio"):
    """A dict for each row of either run (but torch's own layers): label, old, new (figures or None), change (relative;
    above 0 is slower), apart (the quartile ranges do not overlap), broken (measured before, fails now), only ("old",
    "new" or None), algorithms (of both)."""
    before, after = ({_key(row): row for row in rows if row["kind"] != "linear"} for rows in (old, new))
    changes = []
    for key in [*after, *(key for key in before if key not in after)]:
        was, now = before.get(key), after.get(key)
        one = _figure(was, by) if was else None
        two = _figure(now, by) if now else None
        failed = now is not None and now["check"].startswith(("failed", "impossible", "refused"))
        changes.append(
            {
                "label": label(now or was, new if now else old),
                "old": one,
                "new": two,
                "change": two["median"] / one["median"] - 1 if one and two else None,
                "apart": bool(one and two) and (two["q1"] > one["q3"] or two["q3"] < one["q1"]),
                "broken": one is not None and failed,
                "only": None if was and now else "new" if now else "old",
                "algorithms": ["/".join(row["algorithm"]) if row else "" for row in (was, now)],
            }
        )
    return changes


def regressed(change, limit):
    """Slower by more than `limit`, and by more than the rounds of either run vary."""
    return change["change"] is not None and change["change"] > limit and change["apart"]


def _table(changes, by, limit):
    right = {"right": True}
    unit = "ms" if by == "latency" else "fastconv / torch"
    names = (f"old {unit}", f"new {unit}", "change")
    columns = [Column("row"), *(Column(name, **right) for name in names), Column("")]
    table = Table("old and new", columns)

    def words(figure):
        if figure is None:
            return "-"
        return milliseconds(figure["median"]) if by == "latency" else f"{figure['median']:.3g}"

    for change in changes:
        relative = "-" if change["change"] is None else f"{change['change']:+.1%}"
        table.row([change["label"], words(change["old"]), words(change["new"]), relative, _verdict(change, limit)])
    table.note(
        "change: of fastconv's time, above 0 is slower"
        + (
            "; in times of PyTorch's eager call of the same run, which cancels the machine's moods."
            if by == "ratio"
            else "."
        )
        + " A change counts if the quartile ranges of the two runs do not overlap."
    )
    return table


def _verdict(change, limit):
    if change["only"]:
        return f"only in the {change['only']} run"
    if change["broken"]:
        return "FAILS NOW"
    words = ""
    if change["change"] is not None:
        if limit is not None and regressed(change, limit):
            words = "SLOWER"
        elif not change["apart"]:
            words = "within the rounds' spread"
        else:
            words = "slower" if change["change"] > 0 else "faster"
    was, now = change["algorithms"]
    return words + (f"; {was} -> {now}" if was != now and was and now else "")


def _remarks(old, new, changes, by):
    """What stands in the way of comparing."""
    for key in ("cpu", "torch", "isa"):
        was, now = old["machine"][key], new["machine"][key]
        if was != now:
            yield f"different {key}: {was} before, {now} now"
    for name, data in (("old", old), ("new", new)):
        if data["noise"]:
            yield f"the {name} run was on a busy machine: {'; '.join(data['noise'])}"
    lacking = sum(change["change"] is None for change in changes)
    if lacking:
        yield f"{lacking} of {len(changes)} rows cannot be compared{' without PyTorch' if by == 'ratio' else ''}"
