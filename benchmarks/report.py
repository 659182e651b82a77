"""What a reader sees of a run: the header, the table of layers, the whole network, and how far to trust it."""

import math

from . import formulas as f
from . import machine, measure
from .table import Column, Table, count, megabytes, milliseconds, percent

_WHAT, _SPEED = 1, 2  # the halves of the table on a narrow terminal


def show(bench):
    print("\n".join(_header(bench)) + "\n")
    layer_table(bench).print()
    for line in _whole_lines(bench) + _trust_lines(bench):
        print(line)


def _header(bench):
    arguments, facts, peaks = bench.arguments, bench.facts, bench.peaks
    does = "forward and all gradients" if bench.training else "forward"
    git = facts["git"]
    commit = f", commit {git['commit'][:10]}{' (modified)' if git['modified'] else ''}" if git else ""
    lines = [
        f"{bench.network.title} on '{bench.image}', batch {arguments.batch}, float32, {does}, accuracy class "
        f"'{arguments.accuracy}'; random weights "
        f"(seed {arguments.seed}); fastconv {facts['fastconv']}{commit} beside torch {facts['torch']}",
        f"{facts['cpu']}, {facts['threads']} of {facts['cores']} cores, {facts['isa']}",
    ]
    if peaks:
        lines.append(
            f"measured peaks: {peaks['flops_per_second'] / 1e9:.0f} GFLOP/s (torch.mm), "
            f"{peaks['bytes_per_second'] / 1e9:.1f} GB/s (copy, read + written)"
        )
    return lines


def layer_table(bench):
    right = {"right": True}
    table = Table(
        title="layer by layer",
        columns=[
            Column("layer"),
            Column("problem", group=_WHAT),
            *(Column(name, group=_WHAT, **right) for name in ("FLOPs", "MACs", "params", "activations", "min bytes")),
            *(Column(name, group=_WHAT, **right) for name in ("saved", "by torch", "workspace")),
            *(Column(name, group=_SPEED, **right) for name in ("torch ms", "+-")),
            Column("layout", group=_SPEED),
            *(Column(name, group=_SPEED, **right) for name in ("fastconv ms", "+-")),
            Column("layout", group=_SPEED),
            *(Column(name, group=_SPEED, **right) for name in ("ratio", "GFLOP/s", "roof", "error", "torch's")),
            Column("algorithm and why", group=_SPEED),
        ],
    )
    for row in bench.rows:
        for cells in _row_cells(row, bench):
            table.row(cells)
    table.total(_total_cells(bench, len(table.columns)))
    for note in _NOTES:
        table.note(note)
    if bench.training:
        table.note(
            "Training: FLOPs and bytes of all passes; output gradients are normal noise, zero where ReLU's kink is within "
            "rounding; the first layer's input wants no gradient."
        )
    return table


_NOTES = (
    "FLOPs = 2 x MAC (pools: one per window element). activations: the layer's output, ReLU in place. min bytes: "
    "every operand moved once. saved: kept for backward when training, parameters not counted, input included. "
    "workspace: scratch memory of fastconv's algorithm, its transformed filter included, which is kept between calls "
    "and checked against the weight at each (torch does not tell its own).",
    "Latencies: medians of interleaved rounds, +-: half the quartile distance; each side in the faster of NCHW and "
    "channels_last (nhwc), weights stored alike. ratio: torch / fastconv, above 1 fastconv is faster; median of the "
    "rounds' own ratios. GFLOP/s and roof (share of the roofline made of the two measured peaks; data in cache can "
    "exceed it) are fastconv's. Convolution + ReLU is one layer: fused here, torch's ReLU in place.",
    "error: max |y - reference| / max |reference|, the reference being torch in float64; verified before timing: at "
    "most twice torch's own error + 2^-23. Linear layers run in torch on both sides.",
)


def _row_cells(row, bench):
    """The lines of one row: the first with all figures, one more for each further pass."""
    layout = row.layout()
    chosen = row.choices.get(layout, [])
    problem = chosen[0]["problem"] if chosen else f"{row.kind} (torch on both sides)" if row.kind == "linear" else ""
    what = [
        row.layer if row.asked == "auto" else f"{row.layer} [{row.asked}]",
        problem,
        count(row.flops),
        count(row.macs),
        count(row.parameters),
        megabytes(row.activation_bytes),
        megabytes(row.minimum_bytes),
        *(megabytes(row.saved_bytes[side]) if side in row.saved_bytes else "-" for side in ("fastconv", "torch")),
        "-" if row.workspace() is None else megabytes(row.workspace()),
    ]
    lines = [[*what, *_speed_cells(row, bench.peaks, chosen)]]
    for more in chosen[1:]:
        blank = [""] * len(lines[0])
        blank[1], blank[-1] = more["problem"], f"{more['pass']} {more['algorithm']}: {more['why']}"
        lines.append(blank)
    return lines


def _speed_cells(row, peaks, chosen):
    found = (row.worst("fastconv", row.layout()), row.worst("torch", row.layout()))
    errors = ["-" if e is None else f"{e:.1e}" for e in found]
    why = f"{chosen[0]['algorithm']}: {chosen[0]['why']}" if chosen else "torch" if row.kind == "linear" else "-"
    figures = row.speed(peaks)
    if figures is None:
        return [*["-"] * 9, *errors, why if row.passed() else row.check]
    theirs, ours = figures["torch"], figures.get("fastconv")
    side = lambda s, samples: [milliseconds(s["median"]), percent(measure.spread(samples)), s["layout"]]  # noqa: E731
    if ours is None:
        return [*side(theirs, row.best("torch")[1]), *["-"] * 6, *errors, why]
    return [
        *side(theirs, row.best("torch")[1]),
        *side(ours, row.best("fastconv")[1]),
        f"{figures['ratio']['median']:.2f}",
        f"{ours['gflops']:.1f}",
        percent(ours["roofline"]),
        *errors,
        why,
    ]


def _first_algorithm(bench):
    """The rows of the first algorithm that was asked for: each layer once."""
    first = bench.arguments.algorithms[0]
    return [row for row in bench.rows if row.kind != "conv" or row.asked == first]


def _total_cells(bench, columns):
    """Sums over convolutions and pools that were measured; the first algorithm if several were asked for."""
    rows = [row for row in _first_algorithm(bench) if row.kind != "linear"]
    measured = [row for row in rows if row.measured()]
    total = lambda name: sum(getattr(row, name) for row in measured)  # noqa: E731
    cells = [f"{len(measured)} of {len(rows)}", "convolutions and pools, one after the other"]
    if not measured:
        return [*cells, *["-"] * (columns - len(cells))]
    figures = [row.speed(bench.peaks) for row in measured]
    theirs, ours = (sum(s[side]["median"] for s in figures) for side in ("torch", "fastconv"))
    roof = sum(s["fastconv"]["roofline"] * s["fastconv"]["median"] for s in figures)
    return [
        *cells,
        count(total("flops")),
        count(total("macs")),
        count(total("parameters")),
        megabytes(total("activation_bytes")),
        megabytes(total("minimum_bytes")),
        "",  # layers share tensors: the whole network's own line says what is saved in all
        "",
        megabytes(max(row.workspace() or 0 for row in measured)),
        milliseconds(theirs),
        "",
        "",
        milliseconds(ours),
        "",
        "",
        f"{theirs / ours:.2f}",
        f"{total('flops') / ours / 1e9:.1f}",
        f"{roof / ours:.0%}",
        *(f"{max(row.worst(side, row.layout()) for row in measured):.1e}" for side in ("fastconv", "torch")),
        "",
    ]


def whole_as_json(bench):
    """Figures of the whole network; None if it was not run."""
    whole = bench.whole
    if not whole:
        return None
    sides = {}
    for name, layouts in whole["samples"].items():
        if all(layouts.values()):
            best = min(layouts, key=lambda layout: measure.summary(layouts[layout])["median"])
            sides[name] = {"layout": best, **measure.summary(layouts[best])}
    ratios = {
        name: measure.ratio(whole["samples"]["torch"][sides["torch"]["layout"]], whole["samples"][name][s["layout"]])
        for name, s in sides.items()
        if name != "torch" and "torch" in sides
    }
    return {
        "check": whole["check"],
        "speed": sides,
        "ratio": ratios,
        "samples": whole["samples"],
        "saved_bytes": whole["saved_bytes"],
        "parameters": whole["parameters"],
        "flops": sum(layer.flops(before, bench.arguments.batch) for layer, before, _ in bench.network.walk()),
        "activation_bytes": bench.network.activations() * bench.arguments.batch * f.FLOAT,
        "forward_peak_bytes": forward_peak(bench),
    }


def forward_peak(bench):
    """Parameters, and the largest input + output + workspace of a layer: what inference must hold at once."""
    held = max(row.input_bytes + row.activation_bytes + (row.workspace() or 0) for row in _first_algorithm(bench))
    return bench.network.parameters() * f.FLOAT + held


def _whole_lines(bench):
    whole = whole_as_json(bench)
    if not whole or not whole["check"]:
        return []
    does = "forward and backward" if bench.training else "forward"
    lines = [f"whole network, {does}, end to end (linear layers are torch's on both sides):"]
    torchs = whole["speed"].get("torch")
    if torchs:
        lines.append(_side_line("torch", torchs, whole["samples"]["torch"][torchs["layout"]]))
    for asked, layouts in whole["check"].items():
        name = f"fastconv {asked}"
        figures = whole["speed"].get(name)
        if figures:
            line = _side_line(name, figures, whole["samples"][name][figures["layout"]])
            lines.append(line + f", torch/fastconv {whole['ratio'][name]['median']:.2f}" if torchs else line)
        lines += [f"    {layout}: {_check_words(check)}" for layout, check in layouts.items()]
    lines.append(
        f"  memory: parameters {megabytes(whole['parameters'] * f.FLOAT)}; all activations "
        f"{megabytes(whole['activation_bytes'])}; forward needs at least {megabytes(whole['forward_peak_bytes'])} at "
        f"once (parameters + largest layer); this process at most {megabytes(machine.peak_rss())}"
    )
    saved = whole["saved_bytes"]
    if len(saved) == 2:
        ours, theirs = (megabytes(saved[side]) for side in ("fastconv", "torch"))
        lines.append(f"  saved for backward when training: fastconv {ours}, torch {theirs} (parameters not counted)")
    return lines


def _side_line(name, figures, samples):
    return (
        f"  {name + ':':16} {milliseconds(figures['median'])} ms +- {percent(measure.spread(samples))} "
        f"({'channels_last' if figures['layout'] == 'nhwc' else 'NCHW'}, {figures['count']} rounds)"
    )


def _check_words(check):
    if "refused" in check:
        return f"refused: {check['refused']}"
    words = f"largest difference from torch {check['difference']:.1e} of the largest output"
    if check.get("gradient_difference") is not None:
        words += f", of a gradient's norm {check['gradient_difference']:.1e}"
    if check["top5_equal"] is not None:
        words += f", top-5 classes {'equal' if check['top5_equal'] else 'DIFFER'}: {check['top5'][0]} (random weights)"
    return words if check["ok"] else f"FAILED, not measured: {words}"


def _trust_lines(bench):
    lines = []
    failed = [row.layer if row.asked == "auto" else f"{row.layer} [{row.asked}]" for row in bench.rows if row.failed()]
    if failed:
        lines.append(f"FAILED, not measured: {', '.join(failed)}")
    if bench.interrupted:
        lines.append("Interrupted: only what was measured until then is shown.")
    reasons = bench.noise()
    if reasons:
        lines.append(f"Do not trust these times: {'; '.join(reasons)}.")
    elif reasons is not None and not bench.interrupted:
        lines.append("The machine was quiet.")
    return ["", *lines]


def finite(value):
    """JSON has no infinities or NaN: they become null. Layout names and such stay as they are."""
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
