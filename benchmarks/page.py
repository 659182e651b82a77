"""`python -m benchmarks report RESULTS.json`: one HTML page that needs nothing beside itself, and the plots as PNG."""

import base64
import html
import pathlib

from . import files, plots, recording_page, recording_plots, summary
from .plots import label
from .rows import FASTCONV
from .table import count, megabytes, milliseconds, percent
from .writers import read_json, side_error, side_peak

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1150px; padding: 0 1rem; color: #1a1a1a; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
img { max-width: 100%; height: auto; }
.wide { overflow-x: auto; } .broad { margin-left: calc(50% - 48vw); width: 96vw; }
table { border-collapse: collapse; font-size: 13px; }
th, td { padding: 3px 9px; text-align: right; white-space: nowrap; border-bottom: 1px solid #e4e4e4; }
th { border-bottom: 2px solid #888; position: sticky; top: 0; background: #fff; }
td.words, th.words { text-align: left; } td.why { white-space: normal; min-width: 22rem; }
code { font-size: 12px; } .faster { color: #0072B2; font-weight: 600; } .slower { color: #B34700; font-weight: 600; }
.warning { background: #fff3e0; border-left: 4px solid #D55E00; padding: .5rem .9rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; } dt { color: #666; } dd { margin: 0; }
"""
_NOTES = (
    "Latencies are medians of rounds in which all sides took turns; ± is half the quartile distance; every side is "
    "shown in the faster of the layouts it was run in. The ratio is the median of the rounds' own ratios; above 1 "
    "fastconv is faster. Outputs were verified before timing.",
    "FLOPs are 2 × MAC (pools: one per window element); executed are the multiplications that the algorithm does; "
    "least bytes count every operand once; the share of the roofline is of the two measured peaks, which data in cache "
    "can exceed.",
    "Errors are max |y − reference| / max |reference|; the reference is PyTorch in float64.",
)


def write_report(arguments):
    """Writes the page and the plots. Returns the exit status.

    Raises:
        BadResults: the file is no result of this version.
        MissingExtra: matplotlib is not installed.
    """
    results = pathlib.Path(arguments.results)
    write(results, pathlib.Path(arguments.out) if arguments.out else results.with_name(f"{results.stem}-report"))
    return 0


def write(results, folder):
    """The page and the plots of the file `results`, into `folder`. Raises as write_report."""
    data = read_json(results)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = _draw(data, folder)
    files.replace(folder / "index.html", page(data, [(title, (folder / name).read_bytes()) for title, name in drawn]))
    print(f"{folder / 'index.html'}, {', '.join(name for _, name in drawn) or 'no plots: nothing was measured'}")


def _draw(data, folder):
    """[(title, file name)]"""
    if not data.get("recording"):
        return plots.draw(data, folder)
    if not any(summary.ratio_of(row) for row in data["rows"]):
        return []
    recording_plots.draw_ratios(data, folder / "ratios.png")
    recording_plots.draw_roofline(data, summary.main_setups(data), folder / "roofline.png")
    return [("Every problem", "ratios.png"), ("Roofline", "roofline.png")]


def page(data, pictures):
    """The HTML; `pictures` [(title, PNG)] are embedded."""
    e = html.escape
    body = [f"<h1>fastconv beside {e(', '.join(data['machine']['peers']) or 'nobody')}: {e(data['title'])}</h1>"]
    body += [_facts(data), *_warnings(data)]
    shown = [
        f'<h2>{e(title)}</h2><img alt="{e(title)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        for title, png in pictures
    ]
    if data.get("recording"):
        body += recording_page.body(data, shown)
    else:
        body += [*shown, *(_whole(one) for one in data["whole_network"])]
        body += ["<h2>Every row</h2>", _table(data)]
    body += [f"<p>{note}</p>" for note in _NOTES]
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>fastconv: {e(data["title"])}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}{recording_page.STYLE}</style>\n"
        + "\n".join(body)
        + "\n</html>\n"
    )


def _facts(data):
    facts, git = data["machine"], data["machine"]["git"]
    clock = f", {facts['clock_mhz']} MHz" if facts["clock_mhz"] else ""
    commit = f", commit {git['commit'][:10]}{' (modified)' if git['modified'] else ''}" if git else ""
    lines = {
        "written": data["written"],
        "machine": f"{facts['cpu']}, {facts['cores']} cores{clock}, {facts['isa']}, {facts['system']}",
        "GPU": facts["gpu"],
        "versions": f"fastconv {facts['fastconv']}{commit}; Python {facts['python']}; "
        + ", ".join(f"{name} {version}" for name, version in facts["peers"].items()),
        "absent peers": "; ".join(f"{name}: {why}" for name, why in data["peers_absent"].items()),
        "accuracy class": data["accuracy"],
        "sweep": " ".join(data["sweep"]),
        "seed": str(data["seed"]),
    }
    for threads, peaks in data["peaks"].items():
        rates = ", ".join(f"{rate / 1e9:.0f} GFLOP/s {dtype}" for dtype, rate in peaks["flops_per_second"].items())
        lines[f"peaks, threads: {threads}"] = f"{rates} (torch.mm), {peaks['bytes_per_second'] / 1e9:.1f} GB/s (copy)"
    cells = (f"<dt>{html.escape(key)}</dt><dd>{html.escape(value)}</dd>" for key, value in lines.items() if value)
    return f"<dl>{''.join(cells)}</dl>"


def _warnings(data):
    reasons = []
    if data["noise"]:
        reasons.append(f"Do not trust these times: {'; '.join(data['noise'])}.")
    if data["interrupted"]:
        reasons.append("Stopped by an error or interrupted: only what was measured until then is shown.")
    for row in data["rows"]:
        if row["check"].startswith(("failed", "impossible")):
            reasons.append(f"{label(row, data['rows'])}: {row['check']}")
    return [f'<p class="warning">{html.escape(reason)}</p>' for reason in reasons]


def _whole(one):
    lines = []
    for side, figures in one["speed"].items():
        ratio = one["ratio"].get(side)
        words = f"{milliseconds(figures['median'])} ms ± {percent(figures['spread'])}, {figures['layout']}"
        words += f"; {one['best_peer']} / fastconv {ratio['median']:.2f}" if ratio else ""
        lines.append(f"<dt>{html.escape(side)}</dt><dd>{html.escape(words)}</dd>")
    return f"<h2>Whole network, threads: {one['threads']}</h2><dl>{''.join(lines)}</dl>"


def _table(data):
    rows = data["rows"]
    peers = list(
        dict.fromkeys(side for row in rows for side in (row["speed"] or {}).get("sides", {}) if side != FASTCONV)
    )
    words = ["layer", "problem"]
    numbers = ["fastconv ms", "±", *(f"{name} ms" for name in peers), "ratio to best", "GFLOP/s", "roofline"]
    numbers += ["FLOPs", "executed", "least bytes", "FLOP/B", "workspace", "saved", "by torch", "peak"]
    numbers += ["error", *(f"{name}’s" for name in peers)]
    head = "".join(f'<th class="words">{name}</th>' for name in words) + "".join(
        f"<th>{html.escape(n)}</th>" for n in numbers
    )
    lines = [f'<tr>{head}<th class="words">math</th><th class="words">algorithm and why</th></tr>']
    lines += [_row(row, rows, peers) for row in rows]
    return f'<div class="wide broad"><table>{"".join(lines)}</table></div>'


def _row(row, rows, peers):
    sides = (row["speed"] or {}).get("sides", {})
    ours, ratio = sides.get(FASTCONV), (row["speed"] or {}).get("ratio")
    say = lambda value, words: "-" if value is None else words(value)  # noqa: E731
    error = lambda side: say(side_error(row, side), lambda value: f"{value:.1e}")  # noqa: E731
    numbers = [
        say(ours, lambda s: milliseconds(s["median"])),
        say(ours, lambda s: percent(s["spread"])),
        *(say(sides.get(name), lambda s: milliseconds(s["median"])) for name in peers),
        say(ratio, lambda r: f"{r['median']:.2f}"),
        say(ours, lambda s: f"{s['gflops']:.1f}"),
        say(ours, lambda s: percent(s["roofline"])),
        say(row["flops"], count),
        say(row["executed_macs"], count),
        say(row["minimum_bytes"], megabytes),
        say(row["arithmetic_intensity"], lambda value: f"{value:.1f}"),
        say(row["workspace_bytes"], megabytes),
        say(row["saved_bytes"].get(FASTCONV), megabytes),
        say(row["saved_bytes"].get("torch"), megabytes),
        say(side_peak(row, FASTCONV), megabytes),
        error(FASTCONV),
        *(error(name) for name in peers),
    ]
    why = "; ".join(f"{a}: {w}" for a, w in zip(row["algorithm"], row["why"], strict=True))
    why = why if row["check"] == "ok" else row["check"]
    shade = "" if ratio is None else ' class="faster"' if ratio["median"] >= 1 else ' class="slower"'
    at = 2 + len(peers)  # the ratio's place
    cells = "".join(f"<td{shade if i == at else ''}>{html.escape(cell)}</td>" for i, cell in enumerate(numbers))
    problem = f"<code>{html.escape(row['problem'] or row['kind'])}</code>"
    return (
        f'<tr><td class="words">{html.escape(label(row, rows))}</td><td class="words">{problem}</td>{cells}'
        f'<td class="words">{html.escape(row["math"])}</td><td class="words why">{html.escape(why)}</td></tr>'
    )
