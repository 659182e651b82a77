"""Pictures of a run's JSON: roofline, ratios, memory, accuracy against speed. Needs matplotlib, but no display."""

from collections import Counter

from .extras import need
from .rows import FASTCONV
from .writers import side_error, side_peak

# Okabe and Ito's colours, which the colour-blind can tell apart.
COLOURS = {
    FASTCONV: "#0072B2",
    "torch": "#D55E00",
    "torch.compile": "#009E73",
    "onnxruntime": "#CC79A7",
    "jax": "#E69F00",
}
_FOOT = 1.5  # inches of a bar chart beside its bars: title, axis, legend
_PANEL_ROWS = 45  # more bars than this cannot be read: the rest is summed up in words
_LABELLED = 40  # points


def _pyplot():
    need("matplotlib", "to draw plots").use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({
        "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left",
        "axes.titleweight": "bold", "legend.frameon": False, "figure.dpi": 110, "savefig.bbox": "tight",
    })  # fmt: skip
    return plt


def label(row, rows):
    """The row's name, with whatever tells it from others of this name."""
    name = row["name"] or row["problem"] or row["kind"]
    if row["name"] and len({r["source"] for r in rows if r["name"]}) > 1:
        name = f"{row['source']} {name}"
    parts = [name] if row["algorithm_asked"] == "auto" else [f"{name} [{row['algorithm_asked']}]"]
    for key, words in (("pass", "{}"), ("dtype", "{}"), ("batch", "n{}"), ("threads", "{}T"), ("accuracy", "{}"),
                       ("malloc", "malloc {}")):
        if len({r[key] for r in rows}) > 1:
            parts.append(words.format(row[key]))
    if not row["name"]:
        return " ".join(parts)
    if len({tuple(r["layouts"]) for r in rows if r["kind"] != "linear"}) > 1 and row["kind"] != "linear":
        parts.append("/".join(row["layouts"]))
    return " ".join(parts)


def _labels(rows):
    """A label for each row, in order; equal ones are numbered."""
    texts = [label(row, rows) for row in rows]
    again, seen = Counter(texts), Counter()
    unique = []
    for text in texts:
        seen[text] += 1
        unique.append(f"{text} ({seen[text]})" if again[text] > 1 else text)
    return unique


def _shown(rows):
    """Rows with a time of fastconv."""
    return [row for row in rows if row["speed"] and FASTCONV in row["speed"]["sides"]]


def draw(data, folder):
    """Write the plots that the results have data for. Returns [(title, file name)]."""
    plt = _pyplot()
    rows, made = _shown(data["rows"]), []

    def save(name, title, figure):
        if figure is not None:
            figure.savefig(folder / name)
            plt.close(figure)
            made.append((title, name))

    groups = list(dict.fromkeys((str(row["threads"]), row["dtype"]) for row in rows))
    for threads, dtype in groups:
        group = [row for row in rows if (str(row["threads"]), row["dtype"]) == (threads, dtype)]
        words = f"{dtype}, {threads} thread{'s' if threads != '1' else ''}"
        name = "roofline.png" if len(groups) == 1 else f"roofline-{dtype}-{threads}.png"
        save(name, f"Roofline, {words}", _roofline(plt, group, data["peaks"][threads], dtype, words))
    save("ratio.png", "Speed beside the best peer", _ratios(plt, rows))
    save("memory.png", "Memory", _memory(plt, rows))
    save("accuracy.png", "Accuracy against speed", _accuracy(plt, rows))
    return made


def _roofline(plt, rows, peaks, dtype, words):
    compute, bandwidth = peaks["flops_per_second"][dtype] / 1e9, peaks["bytes_per_second"] / 1e9
    rows = [row for row in rows if row["arithmetic_intensity"]]
    if not rows:
        return None
    figure, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
    intensities = [row["arithmetic_intensity"] for row in rows]
    low, high = min(*intensities, compute / bandwidth) / 2, max(*intensities, compute / bandwidth) * 2
    corner = compute / bandwidth
    axes.plot([low, corner, high], [low * bandwidth, compute, compute], color="black", linewidth=1.5, zorder=1)
    axes.set(xscale="log", yscale="log", xlim=(low, high))
    sides = Counter(side for row in rows for side in _pair_of(row))
    for side in sorted(sides, key=lambda name: name != FASTCONV):
        points = [
            (row["arithmetic_intensity"], row["speed"]["sides"][side]["gflops"])
            for row in rows
            if side in _pair_of(row)
        ]
        hollow = side != FASTCONV
        axes.scatter(
            *zip(*points, strict=True), s=38, color="none" if hollow else COLOURS[side], edgecolors=COLOURS[side],
            linewidths=1.3, label=f"{side} (where the best peer)" if hollow else side, zorder=2 if hollow else 3,
        )  # fmt: skip
    for row in rows:  # a thin line joins the two sides of a row
        speeds = [row["speed"]["sides"][side]["gflops"] for side in _pair_of(row)]
        axes.plot([row["arithmetic_intensity"]] * len(speeds), speeds, color="grey", linewidth=0.6, zorder=1)
    bottom = min(row["speed"]["sides"][side]["gflops"] for row in rows for side in _pair_of(row))
    top = max(row["speed"]["sides"][side]["gflops"] for row in rows for side in _pair_of(row))
    axes.set_ylim(bottom / 2, max(top, compute) * 2)
    _plain(axes.xaxis)
    _plain(axes.yaxis)
    roofs = [
        axes.annotate(
            f"{compute:.0f} GFLOP/s, torch.mm", (corner, compute), (-4, 6), textcoords="offset points", ha="right"
        ),
        _slanted(axes, low, bandwidth, corner),
    ]
    axes.set(xlabel="FLOP per byte of least traffic", ylabel="GFLOP/s", title=f"Roofline measured in this run: {words}")
    axes.grid(True, which="major", linewidth=0.4, alpha=0.5)
    axes.legend(loc="lower right")
    named = _once(rows)
    if len(named) <= _LABELLED:
        at = lambda row, side: (row["arithmetic_intensity"], row["speed"]["sides"][side]["gflops"])  # noqa: E731
        others = [at(row, side) for row in rows for side in _pair_of(row)]
        points, names = [at(row, FASTCONV) for row in named], [_case(row, rows) for row in named]
        along = (low * (high / low) ** (i / 120) for i in range(121))
        _label_points(figure, axes, points, names, others, roofs, [(x, min(x * bandwidth, compute)) for x in along])
    return figure


def _pair_of(row):
    """The sides that are drawn: fastconv and the best peer."""
    peer = row["speed"]["best_peer"]
    return (FASTCONV, peer) if peer else (FASTCONV,)


def _once(rows):
    """Of rows that differ in the algorithm alone, the fastest."""
    best = {}
    for row in rows:
        key, time = (_case(row, rows), *sorted(row["fields"].items())), row["speed"]["sides"][FASTCONV]["median"]
        if key not in best or time < best[key]["speed"]["sides"][FASTCONV]["median"]:
            best[key] = row
    return list(best.values())


def _case(row, rows):
    return label({**row, "algorithm_asked": "auto"}, rows)


def _plain(axis, words="{:g}"):
    """A logarithmic axis with plain numbers, the more of them the shorter it is."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = axis.get_view_interval()
    subs = (1, 1.5, 2, 3, 5, 7) if high / low < 20 else (1, 2, 5) if high / low < 300 else (1,)
    axis.set_major_locator(LogLocator(subs=subs, numticks=30))
    axis.set_major_formatter(FuncFormatter(lambda value, _: words.format(value)))
    axis.set_minor_locator(NullLocator())


def _slanted(axes, low, bandwidth, corner):
    """The words along the roof's slope."""
    at = low * (corner / low) ** 0.35 if corner > low else low
    return axes.annotate(
        f"{bandwidth:.1f} GB/s, copy", (at, at * bandwidth), (0, 6), textcoords="offset points", rotation=45,
        rotation_mode="anchor", transform_rotates_text=True, ha="center", va="bottom",
    )  # fmt: skip


# Beside a point, then farther off, joined to it by a line: offsets in points, alignment.
_PLACES = (
    (7, 3, "left"), (-7, 3, "right"), (7, -10, "left"), (-7, -10, "right"), (0, 9, "center"), (0, -17, "center"),
    *((side * (18 + 8 * k), dy * (6 + 12 * k), "left" if side > 0 else "right")
      for k in range(6) for side in (-1, 1) for dy in (1, -1)),
)  # fmt: skip


def _label_points(figure, axes, points, labels, others, texts, line):
    """Names beside points, in the first of several places where no name, none of `texts`, no point and not the `line`
    (points too) is. Points of almost the same place share a name, 'conv3_2, conv3_3'."""
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    together = {}
    for point, text in zip(points, labels, strict=True):
        near = next((p for p in together if all(abs(a / b - 1) < 0.08 for a, b in zip(p, point, strict=True))), point)
        together.setdefault(near, []).append(text)
    figure.canvas.draw()
    renderer, frame = figure.canvas.get_renderer(), axes.get_window_extent()
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in axes.transData.transform(others)]
    taken += [text.get_window_extent(renderer) for text in texts]
    taken += [Bbox.from_bounds(x - 2, y - 2, 4, 4) for x, y in axes.transData.transform(line)]
    for point, names in together.items():
        words = ", ".join(names) if len(names) <= 2 else f"{names[0]} and {len(names) - 1} more"
        for dx, dy, align in _PLACES:
            line = {"arrowstyle": "-", "linewidth": 0.4, "color": "grey"} if abs(dx) > 7 else None
            text = axes.annotate(
                words, point, (dx, dy), textcoords="offset points", ha=align, fontsize=7.5, arrowprops=line
            )
            text.update_positions(renderer)
            box = Text.get_window_extent(text, renderer)  # without the line
            if frame.x0 < box.x0 and box.x1 < frame.x1 and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            text.remove()


def _most(rows, weight, what):
    """(rows that can be drawn, words about the rest)"""
    if len(rows) <= _PANEL_ROWS:
        return rows, ""
    kept = sorted(sorted(rows, key=weight, reverse=True)[:_PANEL_ROWS], key=rows.index)
    return kept, f" (the {_PANEL_ROWS} of {len(rows)} rows with the most {what})"


def _bars(plt, rows, panels=1):
    figure, axes = plt.subplots(
        1, panels, figsize=(9 if panels == 1 else 11, _FOOT + 0.27 * len(rows)), sharey=True, layout="constrained"
    )
    first = axes if panels == 1 else axes[0]
    first.set_yticks(range(len(rows)), _labels(rows))
    first.set_ylim(len(rows) - 0.4, -0.6)  # the first row on top
    return figure, axes


def _ratios(plt, rows):
    rows = [row for row in rows if row["speed"]["ratio"]]
    if not rows:
        return None
    rows, rest = _most(rows, lambda row: row["flops"], "FLOPs")
    figure, axes = _bars(plt, rows)
    ratios = [row["speed"]["ratio"] for row in rows]
    medians = [r["median"] for r in ratios]
    winners = [FASTCONV if m >= 1 else row["speed"]["best_peer"] for m, row in zip(medians, rows, strict=True)]
    colours = [COLOURS[name] for name in winners]
    errors = [[r["median"] - r["q1"] for r in ratios], [r["q3"] - r["median"] for r in ratios]]
    # bars grow from 1, so that 0.5 and 2 are equally long on the logarithmic axis
    axes.barh(range(len(rows)), [m - 1 for m in medians], left=1, color=colours, height=0.7)
    axes.errorbar(medians, range(len(rows)), xerr=errors, fmt="none", ecolor="black", elinewidth=0.8, capsize=2)
    low, high = min(*medians, 0.7), max(*medians, 1.4)
    axes.set(xscale="log", xlim=(low / 1.25, high * 1.25))
    _plain(axes.xaxis)
    for y, median in enumerate(medians):
        axes.text(1.01, y, f"{median:.2f}", transform=axes.get_yaxis_transform(), va="center", fontsize=9)
    axes.axvline(1, color="black", linewidth=1)
    handles = [
        plt.Rectangle((0, 0), 1, 1, color=colour, label=f"{name} is faster")
        for name, colour in COLOURS.items()
        if name in winners
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    peers = {row["speed"]["best_peer"] for row in rows}
    who = peers.pop() if len(peers) == 1 else "best peer"
    axes.set(title=f"Time of {who} / time of fastconv{rest}", xlabel="above 1: fastconv is faster; lines: quartiles")
    axes.grid(True, axis="x", linewidth=0.4, alpha=0.5)
    axes.set_axisbelow(True)
    return figure


def _memory(plt, rows):
    found, seen = [], set()
    for row in rows:  # one bar for rows that only differ in what memory does not depend on
        key = (row["problem"], row["algorithm_asked"], row["name"])
        if key not in seen and (row["saved_bytes"] or row["peak_bytes"]):
            seen.add(key)
            found.append(row)
    if not found:
        return None
    found, rest = _most(found, lambda row: side_peak(row, FASTCONV) or 0, "memory")
    figure, (saved, peak) = _bars(plt, found, panels=2)
    _pairs(saved, found, lambda row, side: row["saved_bytes"].get(side), (FASTCONV, "torch"))
    saved.set(title="Saved for backward", xlabel="MB")
    _pairs(peak, found, lambda row, side: side_peak(row, side), (FASTCONV, "torch"))
    peak.set(title="Peak of one call", xlabel="MB: operands, results, scratch memory, kept filters")
    figure.legend(*peak.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    if rest:
        figure.suptitle(f"Memory{rest}", x=0.01, ha="left")
    return figure


def _pairs(axes, rows, value, sides):
    """Two thin bars for each row, in MB."""
    for at, side in zip((-0.19, 0.19), sides, strict=True):
        sizes = [(value(row, side) or 0) / 1e6 for row in rows]
        axes.barh([y + at for y in range(len(rows))], sizes, height=0.36, color=COLOURS[side], label=side)
    axes.grid(True, axis="x", linewidth=0.4, alpha=0.5)
    axes.set_axisbelow(True)


def _accuracy(plt, rows):
    points = {}
    for row in rows:
        for side, speed in row["speed"]["sides"].items():
            error = side_error(row, side)
            if error:  # 0 (exact) has no place on a logarithmic axis
                name = f"fastconv, {'/'.join(dict.fromkeys(row['algorithm']))}" if side == FASTCONV else side
                points.setdefault((side, name), set()).add((speed["gflops"], error))
    if not points:
        return None
    figure, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
    markers = iter("osD^vP*X<>")
    for (side, name), found in sorted(points.items(), key=lambda item: item[0][0] != FASTCONV):
        if side == FASTCONV:
            axes.scatter(
                *zip(*found, strict=True), s=36, marker=next(markers, "o"), color=COLOURS[side], alpha=0.8, label=name
            )
        else:
            axes.scatter(*zip(*found, strict=True), s=36, facecolors="none", edgecolors=COLOURS[side], label=name)
    axes.set(
        xscale="log", yscale="log", xlabel="GFLOP/s (2 x MAC of the problem, whatever the algorithm executes)",
        ylabel="largest error / largest result, against float64",
        title="Accuracy against speed: right is faster, down is more exact",
    )  # fmt: skip
    _plain(axes.xaxis)
    _plain(axes.yaxis, "{:.2g}")
    axes.grid(True, which="major", linewidth=0.4, alpha=0.5)
    axes.legend(loc="best", fontsize=8.5)
    return figure
