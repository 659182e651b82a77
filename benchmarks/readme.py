"""`python -m benchmarks readme RESULTS.json`: the project README's tables, from a file of results.

What stands between the markers belongs to this command; the rest of the README is left as it is. Where there are no
markers yet, they are put at the head of the section "Measured".
"""

import os
import pathlib
import re
import sys

from . import files, recording_plots, summary
from .table import megabytes
from .writers import read_json

SECTION = "## Measured\n"
_BEGIN = "<!-- benchmarks:begin {}; made by python -m benchmarks readme -->"
_END = "<!-- benchmarks:end -->"
BLOCK = re.compile(r"<!-- benchmarks:begin ([^;]*);[^>]*-->\n.*?<!-- benchmarks:end -->", re.DOTALL)
PICTURE = "roofline.png"


class BadReadme(Exception):
    """A README that cannot take the tables; the text says why."""


def write_readme(arguments):
    """Returns the exit status: 1 if `--check` finds another text than this command writes, or no picture.

    Raises:
        BadResults: the file is no result of this version.
        BadReadme: the README cannot be read or has no place for the tables.
        MissingExtra: matplotlib is not installed.
    """
    results, readme = pathlib.Path(arguments.results).resolve(), pathlib.Path(arguments.readme).resolve()
    try:
        before = readme.read_text()
    except OSError as error:
        raise BadReadme(f"{readme} cannot be read: {error.strerror}") from None
    data = read_json(results)
    after = replaced(before, data, pathlib.Path(os.path.relpath(results, readme.parent)))
    picture = results.with_name(PICTURE)
    if arguments.check:
        lacks = [str(path) for path, good in ((readme, before == after), (picture, picture.exists())) if not good]
        for path in lacks:
            print(f"{path} is not what `python -m benchmarks readme {arguments.results}` writes", file=sys.stderr)
        return 1 if lacks else 0
    recording_plots.draw_roofline(data, summary.main_setups(data), picture)
    if before != after:
        files.replace(readme, after)
    print(f"{readme.name}: {'rewritten' if before != after else 'as it was'}; {picture}")
    return 0


def replaced(text, data, path):
    """The README's text with the tables of `data`, whose file lies at `path`, relative to the README.

    Raises:
        BadReadme: there are markers more than once, or neither markers nor the section.
    """
    block = f"{_BEGIN.format(path.as_posix())}\n{tables(data, path)}{_END}"
    found = BLOCK.findall(text)
    if len(found) > 1 or text.count("<!-- benchmarks:") != 2 * len(found):
        raise BadReadme("the README must have the markers benchmarks:begin and benchmarks:end once each, in this order")
    if found:
        return BLOCK.sub(lambda _: block, text)
    if SECTION not in text:
        raise BadReadme(f"the README has no section '{SECTION.strip()}'")
    head, section, tail = text.partition(SECTION)
    return f"{head}{section}\n{block}\n{tail}"


def tables(data, path):
    """What stands between the markers, in Markdown."""
    columns = summary.main_setups(data)
    groups, layers, whole = summary.by_group(data), summary.by_network(data), summary.whole(data)
    head = [f"{setup.words()}" for setup in columns]
    lines = [*_facts(data), ""]
    lines += _table(["kind of layer", *head], [
        [f"{name} ({max(m.count for m in means.values())})", *(_words(means.get(setup)) for setup in columns)]
        for name, means in groups.items()
    ])  # fmt: skip
    lines += ["", "End to end, and in brackets the geometric mean over the network's layers:", ""]
    lines += _table(["network", *head], [
        [summary.title(name), *(_both(whole.get(name, {}).get(s), means.get(s)) for s in columns)]
        for name, means in layers.items()
    ])  # fmt: skip
    lines += ["", *_notes(data, path), "", f"![roofline]({path.with_name(PICTURE).as_posix()})", ""]
    return "\n".join(lines)


def _table(head, rows):
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _words(found):
    return found.words() if found else "-"


def _both(whole, layers):
    return "-" if not (whole or layers) else " ".join(
        [f"{whole:.2f}" if whole else "-", f"({layers.mean:.2f})" if layers else ""]
    ).strip()  # fmt: skip


def _facts(data):
    facts, git = data["machine"], data["machine"]["git"]
    commit = f" at commit {git['commit'][:10]}{' (modified)' if git['modified'] else ''}" if git else ""
    problems = sum(max(found.count for found in means.values()) for means in summary.by_group(data).values())
    return _wrapped(
        f"{facts['cpu']}, {facts['cores']} cores, {facts['isa']}; PyTorch {facts['torch']}, fastconv "
        f"{facts['fastconv']}{commit}, accuracy class `{data['accuracy']}`, float32, {data['written'][:10]}. Time of "
        f"PyTorch over time of fastconv, each in its better layout (NCHW or channels_last), outputs and gradients "
        f"verified against float64 first: geometric mean over {problems} problems by kind, smallest to largest in "
        f"brackets."
    )


def _notes(data, path):
    words = []
    for setup in summary.main_setups(data)[-1:]:
        tuned = summary.Setup("tuned", setup.direction, setup.batch, setup.threads)
        every = [summary.mean(map(summary.ratio_of, _rows(data, each))) for each in (setup, tuned)]
        if all(every):
            words.append(
                f"With malloc tuned on both sides, so that freed memory stays with the process, the mean over all "
                f"layers ({setup.words()}) is {every[1].mean:.2f} instead of {every[0].mean:.2f}."
            )
    words += _memory(data)
    if data["noise"]:
        words.append(f"The benchmark itself found: {'; '.join(data['noise'])}.")
    missing = (data.get("recording") or {}).get("missing")
    if missing:
        words.append(f"{len(missing)} parts of the recording have not been measured yet.")
    words.append(
        f"Everything else, layer by layer: [{path.parent.as_posix()}]({path.parent.as_posix()}), "
        f"whose `report/index.html` shows it."
    )
    return _wrapped(" ".join(words))


def _rows(data, setup):
    return [row for row in data["rows"] if summary.setup_of(row) == setup]


def _memory(data):
    """VGG-16's forward pass, or the first network's that was looked at."""
    looked = [one for one in data["whole_network"] if one["pass"] == "fwd" and len(one["peak_bytes"]) > 1]
    one = next((one for one in looked if one["network"] == "vgg16"), looked[0] if looked else None)
    if one is None or any(None in each.values() for each in one["peak_bytes"].values()):
        return []
    peaks = {side: min(each.values()) for side, each in one["peak_bytes"].items()}
    scratch = max(
        (row["workspace_bytes"] or 0 for row in _rows(data, summary.setup_of(one))
         if one["network"] in [network for network, _ in summary.layers_of(row)]), default=0,
    )  # fmt: skip
    return [
        f"{summary.title(one['network'])}, forward, batch {one['batch']}: peak memory "
        f"{megabytes(peaks['fastconv auto'])} (PyTorch {megabytes(peaks['torch'])}), of which "
        f"{megabytes(4 * one['parameters'])} are parameters; largest workspace of a layer {megabytes(scratch)}, "
        f"{megabytes(one['filter_bytes'] or 0)} of transformed filters kept between calls."
    ]


def _wrapped(text):
    """Lines of at most 120 columns."""
    import textwrap

    return textwrap.wrap(text, 120, break_long_words=False, break_on_hyphens=False)
