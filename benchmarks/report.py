"""What a reader sees of a run: the header, the table of rows, the whole network, and how far to trust it."""

from . import formulas as f
from . import machine
from .rows import FAILED, FASTCONV, IMPOSSIBLE, REFUSED
from .table import Column, Table, count, megabytes, milliseconds, percent

_WHAT, _SPEED = 1, 2  # the halves of the table on a narrow terminal


def show(bench):
    print("\n".join(_header(bench)) + "\n")
    row_table(bench).print()
    for one in bench.whole:
        print("\n".join(_whole_lines(one)))
    print("\n".join(_trust_lines(bench)))


def title(bench):
    """What was run, in words."""
    arguments = bench.arguments
    if bench.network:
        return f"{bench.network.title} on '{bench.image}'"
    return arguments.suite or arguments.csv_file or "problem"


def _header(bench):
    arguments, facts = bench.arguments, bench.facts
    git = facts["git"]
    commit = f", commit {git['commit'][:10]}{' (modified)' if git['modified'] else ''}" if git else ""
    peers = ", ".join(f"{name} {version}" for name, version in facts["peers"].items())
    clock = f", {facts['clock_mhz']} MHz" if facts["clock_mhz"] else ""
    lines = [
        f"{title(bench)}; accuracy class '{arguments.accuracy}'; random weights (seed {arguments.seed}); "
        f"fastconv {facts['fastconv']}{commit} beside {peers or 'nobody'}",
        f"{facts['cpu']}, {facts['cores']} cores{clock}, {facts['isa']}",
    ]
    lines += [f"not here, so not measured: {name} ({why})" for name, why in bench.absent.items()]
    for threads, peaks in bench.peaks.items():
        rates = ", ".join(f"{rate / 1e9:.0f} GFLOP/s {dtype}" for dtype, rate in peaks["flops_per_second"].items())
        lines.append(
            f"measured peaks of {threads} thread{'s' if threads > 1 else ''}: {rates} (torch.mm), "
            f"{peaks['bytes_per_second'] / 1e9:.1f} GB/s (copy, read + written)"
        )
    return lines


def row_table(bench):
    """The selection of figures for a terminal; JSON and CSV have all."""
    right = {"right": True}
    many = len({name for row in bench.rows for name in row.peers()}) > 1
    others = [name for name in bench.arguments.peers if name not in bench.absent] if many else []
    columns = [
        Column("layer"),
        *(Column(name, **right) for name in _varying(bench)),
        Column("problem", group=_WHAT),
        *(Column(name, group=_WHAT, **right) for name in ("FLOPs", "MACs", "executed", "min bytes", "FLOP/B")),
        *(Column(name, group=_WHAT, **right) for name in ("saved", "by torch", "workspace", "peak mem")),
        *(Column(f"{name} ms", group=_SPEED, **right) for name in others),
        Column("best peer", group=_SPEED),
        *(Column(name, group=_SPEED, **right) for name in ("ms", "+-", "fastconv ms", "+-")),
        Column("layout", group=_SPEED),
        *(Column(name, group=_SPEED, **right) for name in ("ratio", "GFLOP/s", "roof", "error", "peer's")),
        Column("math", group=_SPEED),
        Column("algorithm and why", group=_SPEED),
    ]
    table = Table(title="case by case", columns=columns)
    for row in bench.rows:
        for cells in _row_cells(row, bench, others):
            table.row(cells)
    if len(bench.rows) > 1:
        table.total(_total_cells(bench, others, len(columns)))
    for note in _notes(bench):
        table.note(note)
    return table


_VARYING = {
    "threads": lambda row: row.threads,
    "pass": lambda row: row.case.direction,
    "batch": lambda row: row.case.fields["n"],
    "class": lambda row: row.accuracy,
}


def _varying(bench):
    """{name: f(row)} of what not all rows have in common."""
    return {name: of for name, of in _VARYING.items() if len({of(row) for row in bench.rows}) > 1}


def _notes(bench):
    notes = [
        "FLOPs = 2 x MAC (pools: one per window element). executed: multiplications that the algorithm does. min "
        "bytes: every operand moved once. saved: kept for backward when training, parameters not counted, input "
        "included. workspace: scratch memory of fastconv's algorithm, its transformed filter included, which is kept "
        "between calls and checked against the weight at each. peak mem: operands, results and scratch memory of one "
        "call of fastconv, measured.",
        "Latencies: medians of interleaved rounds, +-: half the quartile distance; every side in the faster of the "
        "layouts it was run in (NCHW, channels_last = nhwc), weights stored alike. ratio: best peer / fastconv, above "
        "1 fastconv is faster; median of the rounds' own ratios. GFLOP/s and roof (share of the roofline made of the "
        "two measured peaks; data in cache can exceed it) are fastconv's. Convolution + ReLU is one layer.",
        "error: max |y - reference| / max |reference|, the reference being torch in float64; verified before timing: "
        "at most twice torch's own error in the same layout, or what the accuracy class allows, + one rounding. Linear "
        "layers run in torch on both sides.",
    ]
    if any(row.case.direction == "train" for row in bench.rows):
        notes.append(
            "Training: FLOPs and bytes of all passes; output gradients are normal noise, zero where ReLU's kink is "
            "within rounding; the first layer's input wants no gradient."
        )
    return notes


def _row_cells(row, bench, others):
    """The lines of one row: the first with all figures, one more for each further pass."""
    chosen, facts = row.chosen(), row.facts
    problem = f"{row.case.sizes()} (torch on both sides)" if row.linear() else row.problem() or row.case.sizes()
    number = lambda value, words: "-" if value is None else words(value)  # noqa: E731
    what = [
        row.label(),
        *(str(of(row)) for of in _varying(bench).values()),
        problem,
        number(facts.get("flops"), count),
        number(facts.get("macs"), count),
        number(row.executed_macs(), count),
        number(facts.get("minimum_bytes"), megabytes),
        number(row.intensity(), lambda value: f"{value:.1f}"),
        *(number(row.saved_bytes.get(side), megabytes) for side in (FASTCONV, "torch")),
        number(row.workspace(), megabytes),
        number(row.peak(FASTCONV), megabytes),
    ]
    lines = [[*what, *_speed_cells(row, bench.peaks.get(row.threads), chosen, others)]]
    for more in chosen[1:]:
        blank = [""] * len(lines[0])
        blank[1 + len(_varying(bench))] = more["problem"]
        blank[-1] = f"{more['pass']} {more['algorithm']}: {more['why']}"
        lines.append(blank)
    return lines


def _speed_cells(row, peaks, chosen, others):
    why = f"{chosen[0]['algorithm']}: {chosen[0]['why']}" if chosen else "torch" if row.linear() else "-"
    figures = row.speed(peaks) if peaks else None
    peer = figures["best_peer"] if figures else None
    found = (row.worst(FASTCONV), row.worst(peer or "torch"))
    errors = ["-" if e is None else f"{e:.1e}" for e in found]
    math_mode = machine.MATH[row.case.dtype]
    if figures is None:
        return [*["-"] * (9 + len(others)), *errors, math_mode, why if row.passed() else _check_of(row)]
    sides = figures["sides"]
    of = lambda side: [milliseconds(sides[side]["median"]), percent(sides[side]["spread"])]  # noqa: E731
    cells = [milliseconds(sides[name]["median"]) if name in sides else "-" for name in others]
    cells += [f"{peer} {sides[peer]['layout']}", *of(peer)] if peer else ["-"] * 3
    if FASTCONV not in sides:
        return [*cells, *["-"] * 6, *errors, math_mode, why]
    ours = sides[FASTCONV]
    cells += [*of(FASTCONV), ours["layout"]]
    cells += [f"{figures['ratio']['median']:.2f}" if peer else "-", f"{ours['gflops']:.1f}", percent(ours["roofline"])]
    return [*cells, *errors, math_mode, why]


def _check_of(row):
    """The check in one line."""
    if row.check.startswith(REFUSED):
        return f"refused by {_own_reason(row.check, row.asked)}"
    return " ".join(row.check.split())


def _own_reason(refusal, algorithm):
    """Of a refusal that lists every row's reason, the forced row's; all of it if that is not there."""
    _, found, rest = refusal.partition(f"{algorithm} (cpu): ")
    return f"{algorithm}: {rest.partition('; ')[0]}" if found else refusal


def first_algorithm(bench):
    """The rows of the first algorithm that was asked for and of the first number of threads: each case once."""
    asked, threads = bench.arguments.algorithms[0], bench.numbers_of_threads()[0]
    return [row for row in bench.rows if row.threads == threads and (not row.case.convolves or row.asked == asked)]


def _total_cells(bench, others, columns):
    """Sums over the convolutions and pools that both sides were timed in."""
    rows = [row for row in first_algorithm(bench) if not row.linear()]
    measured = [row for row in rows if row.measured() and row.best_peer()]
    total = lambda name: sum(row.facts[name] for row in measured)  # noqa: E731
    cells = [f"{len(measured)} of {len(rows)}", *[""] * len(_varying(bench)), "convolutions and pools, one by one"]
    if not measured:
        return [*cells, *["-"] * (columns - len(cells))]
    speeds = [row.speed(bench.peaks[row.threads]) for row in measured]
    best = sum(s["sides"][s["best_peer"]]["median"] for s in speeds)
    ours = sum(s["sides"][FASTCONV]["median"] for s in speeds)
    roof = sum(s["sides"][FASTCONV]["roofline"] * s["sides"][FASTCONV]["median"] for s in speeds)
    each = {name: [s["sides"].get(name) for s in speeds] for name in others}
    return [
        *cells,
        count(total("flops")),
        count(total("macs")),
        count(sum(row.executed_macs() for row in measured)),
        megabytes(total("minimum_bytes")),
        "",
        "",  # layers share tensors: the whole network's own line says what is saved in all
        "",
        megabytes(max(row.workspace() or 0 for row in measured)),
        megabytes(max(row.peak(FASTCONV) or 0 for row in measured)),
        *(milliseconds(sum(side["median"] for side in e)) if all(e) else "-" for e in each.values()),
        "best of each",
        milliseconds(best),
        "",
        milliseconds(ours),
        "",
        "",
        f"{best / ours:.2f}",
        f"{total('flops') / ours / 1e9:.1f}",
        percent(roof / ours),
        f"{max(row.worst(FASTCONV) for row in measured):.1e}",
        f"{max(row.worst(row.best_peer()) for row in measured):.1e}",
        "",
        "",
    ]


def _whole_lines(one):
    whole = one.as_json()
    if not whole["speed"] and not whole["check"]:
        return []
    does = "forward and backward" if one.training else "forward"
    lines = [
        f"whole network, {does}, end to end, threads: {one.threads} (linear layers are torch's on both sides):",
    ]
    sides = dict.fromkeys([*whole["speed"], *whole["check"]])
    for side in sides:
        if figures := whole["speed"].get(side):
            line = _side_line(side, figures)
            if side in whole["ratio"]:
                line += f", {whole['best_peer']}/fastconv {whole['ratio'][side]['median']:.2f}"
            lines.append(line)
        for layout, check in whole["check"].get(side, {}).items():
            lines.append(f"    {side}, {layout}: {_check_words(check, side)}")
    lines.append(
        f"  memory: parameters {megabytes(whole['parameters'] * f.FLOAT)}; all activations "
        f"{megabytes(whole['activation_bytes'])}; this process at most {megabytes(machine.peak_rss())}"
    )
    peaks = {side: min(found.values()) for side, found in whole["peak_bytes"].items() if None not in found.values()}
    if peaks:
        words = ", ".join(f"{side} {megabytes(peak)}" for side, peak in peaks.items())
        lines.append(
            f"  peak of one call, parameters included, in the smaller layout: {words}; fastconv keeps "
            f"{megabytes(whole['filter_bytes'] or 0)} of transformed filters between calls"
        )
    saved = whole["saved_bytes"]
    if len(saved) == 2:
        ours, theirs = (megabytes(saved[side]) for side in ("fastconv", "torch"))
        lines.append(f"  saved for backward when training: fastconv {ours}, torch {theirs} (parameters not counted)")
    return lines


def _side_line(name, figures):
    return (
        f"  {name + ':':16} {milliseconds(figures['median'])} ms +- {percent(figures['spread'])} "
        f"({'channels_last' if figures['layout'] == 'nhwc' else 'NCHW'}, {figures['count']} rounds)"
    )


def _check_words(check, side):
    if "refused" in check:
        return f"refused by {_own_reason(check['refused'], side.removeprefix('fastconv '))}"
    words = f"largest difference from torch {check['difference']:.1e} of the largest output"
    if check.get("gradient_difference") is not None:
        words += f", of a gradient's norm {check['gradient_difference']:.1e}"
    if check["top5_equal"] is not None:
        words += f", top-5 classes {'equal' if check['top5_equal'] else 'DIFFER'}: {check['top5'][0]} (random weights)"
    return words if check["ok"] else f"FAILED, not measured: {words}"


def _trust_lines(bench):
    lines = []
    failed = [_who(row, bench) for row in bench.rows if row.check.startswith(FAILED)]
    if failed:
        lines.append(f"FAILED, not measured: {', '.join(failed)}")
    for row in bench.rows:
        lines += [f"FAILED, not measured: {name} in {_who(row, bench)}, {why}" for name, why in row.wrong.items()]
    impossible = (row.check.partition(": ")[2] for row in bench.rows if row.check.startswith(IMPOSSIBLE))
    lines += [f"{number} of {len(bench.rows)} rows cannot be run: {why}" for why, number in _tally(impossible).items()]
    for name in bench.arguments.peers:
        unable = _tally(row.unable.get(name) for row in bench.rows)
        lines += [f"{name} not measured in {n} of {len(bench.rows)} rows: {why}" for why, n in unable.items()]
    if bench.crash:
        lines.append("Stopped by an error (below): only what was measured until then is shown.")
    elif bench.interrupted:
        lines.append("Interrupted: only what was measured until then is shown.")
    reasons = bench.noise()
    if reasons:
        lines.append(f"Do not trust these times: {'; '.join(reasons)}.")
    elif reasons is not None and not bench.interrupted:
        lines.append("The machine was quiet.")
    return ["", *lines]


def _who(row, bench):
    """The row's label, and its problem if others are called the same."""
    alone = sum(other.label() == row.label() for other in bench.rows) == 1
    return row.label() if alone else f"{row.label()} ({row.problem()})"


def _tally(values):
    found = {}
    for value in values:
        if value:
            found[value] = found.get(value, 0) + 1
    return found
