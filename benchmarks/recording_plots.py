"""Pictures of many rows at once: a roofline by kind of layer, and every ratio as a dot."""

import pathlib
import tempfile

from . import summary
from .plots import COLOURS, _plain, _pyplot, _slanted
from .rows import FASTCONV

# Okabe and Ito's colours again, one for each kind of layer.
_COLOURS = dict(zip(summary.GROUPS, (
    "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#000000", "#CC79A7", "#D55E00", "#F0E442",
), strict=True))  # fmt: skip


def draw_roofline(data, setups, path):
    """Two panels at most: the last forward and the last training setup of `setups`, into the PNG `path`."""
    shown = [next((s for s in reversed(setups) if s.direction == d), None) for d in ("fwd", "train")]
    shown = [setup for setup in shown if setup] or setups[-1:]
    plt = _pyplot()
    figure, axes = plt.subplots(1, len(shown), figsize=(5.6 * len(shown), 5), squeeze=False, layout="constrained")
    for one, setup in zip(axes[0], shown, strict=True):
        _roofline(one, data, setup)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8.5)
    _save(plt, figure, path)


def _save(plt, figure, path):
    """The picture, whole or not at all."""
    path = pathlib.Path(path)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".png", delete=False) as file:
        temporary = pathlib.Path(file.name)
    try:
        figure.savefig(temporary, metadata={"Software": None})
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
        plt.close(figure)


def _timed(data, setup):
    return [
        row for row in data["rows"]
        if summary.setup_of(row) == setup and summary.ratio_of(row) and row["arithmetic_intensity"]
    ]  # fmt: skip


def _roofline(axes, data, setup):
    rows, peaks = _timed(data, setup), data["peaks"][str(setup.threads)]
    compute, bandwidth = peaks["flops_per_second"]["f32"] / 1e9, peaks["bytes_per_second"] / 1e9
    corner = compute / bandwidth
    speed = lambda row, side: row["speed"]["sides"][side]["gflops"]  # noqa: E731
    places = [row["arithmetic_intensity"] for row in rows]
    theirs = [speed(row, row["speed"]["best_peer"]) for row in rows]
    low, high = min((*places, corner)) / 1.6, max((*places, corner)) * 1.6
    for x, row, y in zip(places, rows, theirs, strict=True):
        axes.plot([x, x], [y, speed(row, FASTCONV)], color="#bbbbbb", linewidth=0.6, zorder=1)
    hollow = {"facecolors": "none", "edgecolors": "#888888", "linewidths": 0.8}
    axes.scatter(places, theirs, s=16, label="PyTorch", zorder=2, **hollow)
    for group, colour in _COLOURS.items():
        points = [(row["arithmetic_intensity"], speed(row, FASTCONV)) for row in rows if summary.group_of(row) == group]
        if points:
            axes.scatter(*zip(*points, strict=True), s=20, color=colour, label=group, zorder=3)
    axes.plot([low, corner, high], [low * bandwidth, compute, compute], color="black", linewidth=1.4, zorder=1)
    axes.set(xscale="log", yscale="log", xlim=(low, high), xlabel="FLOP per byte of least traffic", ylabel="GFLOP/s",
             title=setup.words())  # fmt: skip
    _plain(axes.xaxis)
    _plain(axes.yaxis)
    words = f"{compute:.0f} GFLOP/s, torch.mm"
    axes.annotate(words, (corner, compute), (-4, 6), textcoords="offset points", ha="right")
    _slanted(axes, low, bandwidth, corner)
    axes.grid(True, which="major", linewidth=0.4, alpha=0.5)


def draw_ratios(data, path):
    """One panel for each setup of the shown malloc: a line of dots for each kind of layer, means as bars."""
    plt = _pyplot()
    setups = summary.main_setups(data)
    groups = [name for name in summary.GROUPS if name in summary.by_group(data)]
    figure, axes = plt.subplots(
        1, len(setups), figsize=(1.8 + 2.9 * len(setups), 1.4 + 0.5 * len(groups)), sharey=True, sharex=True,
        squeeze=False, layout="constrained",
    )  # fmt: skip
    for one, setup in zip(axes[0], setups, strict=True):
        for y, group in enumerate(groups):
            ratios = [summary.ratio_of(row) for row in _timed(data, setup) if summary.group_of(row) == group]
            # dots of one kind lie on one line: a little spread shows how many there are
            spread = [y + 0.24 * ((i * 0.618) % 1 - 0.5) * 2 for i in range(len(ratios))]
            colours = [COLOURS[FASTCONV] if ratio >= 1 else COLOURS["torch"] for ratio in ratios]
            one.scatter(ratios, spread, s=11, c=colours, alpha=0.7, linewidths=0)
            found = summary.mean(ratios)
            if found:
                one.plot([found.mean] * 2, [y - 0.36, y + 0.36], color="black", linewidth=2)
        one.axvline(1, color="black", linewidth=0.8)
        one.set(xscale="log", title=setup.words().replace(", ", ",\n", 1))
        one.title.set_fontsize(9.5)
        one.grid(True, axis="x", linewidth=0.4, alpha=0.5)
    axes[0][0].set_yticks(range(len(groups)), groups)
    axes[0][0].set_ylim(len(groups) - 0.5, -0.5)
    for one in axes[0]:
        _plain(one.xaxis)
    words = "time of PyTorch / time of fastconv: right of 1 fastconv is faster; bars: geometric means"
    figure.supxlabel(words, fontsize=9)
    _save(plt, figure, path)
