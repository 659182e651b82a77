"""The HTML of a recording: hundreds of rows, so means first, then a table for each network, folded away."""

import html

from . import summary
from .rows import FASTCONV
from .table import count, megabytes, milliseconds, percent
from .writers import side_error

STYLE = """
td.s0 { background: #f6c9a8; } td.s1 { background: #fbe7d7; }
td.s2 { background: #e3eef7; } td.s3 { background: #bfdcf0; } td.s4 { background: #8fc1e3; }
th.setup { text-align: center; border-left: 1px solid #ccc; }
td.edge { border-left: 1px solid #ccc; } details { margin: .4rem 0; } summary { cursor: pointer; font-weight: 600; }
small { color: #555; }
"""
_NOTE = (
    "Time of PyTorch / time of fastconv: blue, above 1, fastconv is faster. Means are geometric, with the smallest and "
    "the largest. Each side is in its better layout; columns NCHW and NHWC compare both sides within one."
)


def body(data, pictures):
    """Everything between the facts and the notes, as HTML; `pictures`: HTML too."""
    setups = summary.setups(data)
    parts = [f"<p>{_NOTE}</p>", *_missing(data)]
    parts += ["<h2>Kinds of layers</h2><p>A problem counts once, however many layers have it.</p>"]
    parts += [_means("kind of layer", summary.by_group(data), setups)]
    whole = {name: {s: _Number(r) for s, r in each.items()} for name, each in summary.whole(data).items()}
    parts += ["<h2>Whole networks, end to end</h2>", _means("network", _titled(whole), setups)]
    parts += ["<h2>Layers of a network</h2><p>Each layer counts.</p>"]
    parts += [_means("network", _titled(summary.by_network(data)), setups)]
    parts += [*pictures, _memory(data)]
    parts += ["<h2>Layer by layer</h2>", *_networks(data)]
    return parts


class _Number:
    """One ratio in the place of a mean."""

    def __init__(self, ratio):
        self.mean = self.low = self.high = ratio
        self.count = 1


def _titled(each):
    return {summary.title(name): values for name, values in each.items()}


def _missing(data):
    missing = data["recording"]["missing"]
    if not missing:
        return []
    words = f"{len(missing)} parts have not been measured yet: {', '.join(missing)}"
    return [f'<p class="warning">{html.escape(words)}</p>']


def shade(ratio):
    """A CSS class by the ratio: the darker the farther from 1."""
    return f"s{sum(ratio >= limit for limit in (0.8, 1.0, 1.25, 2.0))}"


def _head(first, setups):
    """Two lines: pass and batch, then threads and malloc."""
    outer = {}
    for setup in setups:
        outer.setdefault((setup.direction, setup.batch), []).append(setup)
    words = {"fwd": "forward", "train": "training"}
    top = "".join(
        f'<th class="setup" colspan="{len(each)}">{words.get(direction, direction)}, batch {batch}</th>'
        for (direction, batch), each in outer.items()
    )
    inner = "".join(
        f"<th>{s.threads} thread{'s' if s.threads > 1 else ''}<br><small>{html.escape(s.malloc)} malloc</small></th>"
        for each in outer.values() for s in each
    )  # fmt: skip
    return f'<tr><th class="words" rowspan="2">{first}</th>{top}</tr><tr>{inner}</tr>', [
        s for each in outer.values() for s in each
    ]


def _means(first, table, setups):
    head, order = _head(first, [setup for setup in setups if any(setup in means for means in table.values())])
    lines = [head]
    for name, means in table.items():
        cells = ""
        for setup in order:
            found = means.get(setup)
            if found is None:
                cells += "<td>-</td>"
                continue
            rest = f"<br><small>{found.low:.2f} to {found.high:.2f}, {found.count}</small>" if found.count > 1 else ""
            cells += f'<td class="{shade(found.mean)}">{found.mean:.2f}{rest}</td>'
        lines.append(f'<tr><td class="words">{html.escape(name)}</td>{cells}</tr>')
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def _memory(data):
    looked = [one for one in data["whole_network"] if one["pass"] == "fwd" and len(one["peak_bytes"]) > 1]
    if not looked:
        return ""
    least = lambda found: "-" if None in found.values() else megabytes(min(found.values()))  # noqa: E731
    lines = []
    for one in looked:
        peaks, saved = one["peak_bytes"], one["saved_bytes"]
        cells = [
            megabytes(4 * one["parameters"]), least(peaks["fastconv auto"]), least(peaks["torch"]),
            megabytes(one["filter_bytes"] or 0), _scratch(data, one),
            *(megabytes(saved[side]) if side in saved else "-" for side in ("fastconv", "torch")),
        ]  # fmt: skip
        name = f"{summary.title(one['network'])}, batch {one['batch']}"
        lines.append(f'<tr><td class="words">{html.escape(name)}</td>{"".join(f"<td>{c}</td>" for c in cells)}</tr>')
    names = ("parameters", "peak, fastconv", "peak, PyTorch", "kept filters", "largest workspace",
             "saved for backward, fastconv", "PyTorch")  # fmt: skip
    head = '<tr><th class="words">forward pass</th>' + "".join(f"<th>{name}</th>" for name in names) + "</tr>"
    return (
        "<h2>Memory</h2><p>Peak: the most that was resident during a call of the whole network, parameters and input "
        "included, in the layout that needs less. Saved for backward: what a training step's forward keeps beside "
        f'parameters.</p><div class="wide"><table>{head}{"".join(lines)}</table></div>'
    )


def _scratch(data, one):
    sizes = [row["workspace_bytes"] or 0 for row in data["rows"]
             if summary.setup_of(row) == summary.setup_of(one)
             and any(network == one["network"] for network, _ in summary.layers_of(row))]  # fmt: skip
    return megabytes(max(sizes)) if sizes else "-"


def _networks(data):
    """A folded table for each network, pass and batch."""
    found = {}
    for row in data["rows"]:
        for network, layer in summary.layers_of(row):
            setup = summary.setup_of(row)
            place = found.setdefault((network, setup.direction, setup.batch), {})
            place.setdefault((layer, row["kind"]), {})[setup.threads, setup.malloc] = row
    order = {name: i for i, name in enumerate(dict.fromkeys(network for network, _, _ in found))}
    for network, direction, batch in sorted(found, key=lambda key: (order[key[0]], key[1], key[2])):
        layers = found[network, direction, batch]
        words = f"{summary.title(network)}, {'forward' if direction == 'fwd' else 'training'}, batch {batch}"
        yield f"<details><summary>{html.escape(words)}</summary>{_layers(layers, network)}</details>"


_PER_SETUP = ("fastconv ms", "PyTorch ms", "ratio", "NCHW", "NHWC", "roof")


def _layers(layers, network):
    setups = list(dict.fromkeys(key for each in layers.values() for key in each))
    top = "".join(
        f'<th class="setup" colspan="{len(_PER_SETUP)}">{threads} thread{"s" if threads > 1 else ""}, '
        f"{html.escape(malloc)} malloc</th>"
        for threads, malloc in setups
    )
    head = '<tr><th class="words" rowspan="2">layer</th><th class="words" rowspan="2">problem</th>'
    head += '<th class="words" rowspan="2">algorithm</th><th rowspan="2">FLOPs</th><th rowspan="2">error</th>'
    head += f'<th rowspan="2">PyTorch’s</th>{top}</tr>'
    head += "<tr>" + "".join(f"<th>{name}</th>" for _ in setups for name in _PER_SETUP) + "</tr>"
    lines = [head]
    for (layer, _), each in _in_order(layers, network):
        row = next(iter(each.values()))
        error = [side_error(row, side) for side in (FASTCONV, "torch")]
        cells = [
            f'<td class="words">{html.escape(layer)}</td>',
            f'<td class="words"><code title="{html.escape(row["problem"])}">{html.escape(_sizes(row))}</code></td>',
            f'<td class="words">{html.escape(" ".join(dict.fromkeys(row["algorithm"])))}</td>',
            f"<td>{count(row['flops'] or 0)}</td>",
            *(f"<td>{'-' if e is None else f'{e:.1e}'}</td>" for e in error),
        ]
        for setup in setups:
            cells.append(_cells(each.get(setup)))
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f'<div class="wide broad"><table>{"".join(lines)}</table></div>'


def _sizes(row):
    """The problem without the words that all rows of a table share, or that a table has columns for."""
    words = {"f32", "nchw", "nhwc", "fwd", "grad_input", "dl1", "g1", "st1", "pd0", f"acc:{row['accuracy']}"}
    return " ".join(word for word in row["problem"].split() if word not in words)


def _in_order(layers, network):
    """As the network runs them: rows stand where they were measured, maybe as another network's."""
    names = [layer.name for layer, _, _ in summary.NETWORKS[network].walk(True)] if network in summary.NETWORKS else []
    place = {name: i for i, name in enumerate(names)}
    return sorted(layers.items(), key=lambda item: place.get(item[0][0], len(place)))


def _cells(row):
    if row is None:
        return f'<td class="edge">-</td>{"<td></td>" * (len(_PER_SETUP) - 1)}'
    if row["check"] != "ok" or not row["speed"]:
        return f'<td class="edge words" colspan="{len(_PER_SETUP)}">{html.escape(row["check"])}</td>'
    sides = row["speed"]["sides"]
    ours, theirs = sides.get(FASTCONV), sides.get("torch")
    ratios = [summary.ratio_of(row), *(summary.ratio_within(row, layout) for layout in ("nchw", "nhwc"))]
    shown = "".join(f'<td class="{shade(r)}">{r:.2f}</td>' if r else "<td>-</td>" for r in ratios)
    times = [milliseconds(side["median"]) if side else "-" for side in (ours, theirs)]
    roof = percent(ours["roofline"]) if ours else "-"
    return f'<td class="edge">{times[0]}</td><td>{times[1]}</td>{shown}<td>{roof}</td>'
