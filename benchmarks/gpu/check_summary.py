"""A gpu-check as JSON, one line for each step, and as markdown: what passed, first errors of what failed, speeds."""

import json

from ..files import finite
from .summary import geometric_mean

_LISTS = ("steps", "rows", "failed")
_MOST_LAYERS = 60  # lines of the table of layers; all are in speed.json
_MARKS = {"passed": "passed", "failed": "**FAILED**", "timed out": "**TIMED OUT**", "unavailable": "**NOT CHECKED**"}


def json_text(data):
    """JSON with one line for each key, and for each item of the long lists and tables."""
    line = lambda value: json.dumps(finite(value), allow_nan=False)  # noqa: E731
    parts = []
    for key, value in data.items():
        if key in _LISTS and isinstance(value, list) and value:
            text = "[\n" + ",\n".join(" " + line(item) for item in value) + "\n]"
        elif key in _LISTS and isinstance(value, dict) and value:
            text = "{\n" + ",\n".join(f" {line(name)}: {line(item)}" for name, item in value.items()) + "\n}"
        else:
            text = line(value)
        parts.append(f"{line(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def read(path):
    """A file of this kind; None if there is none that can be read."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def verdict(data):
    """A few lines: whether everything passed, and what did not."""
    if data["passed"]:
        return ["All steps passed."]
    of_run = [step for step in data["steps"] if not step.get("earlier")]
    lines = [f"{data['stopped_by']} ended this run."] if data["stopped_by"] else []
    for status in ("failed", "timed out", "unavailable", "interrupted", "not run"):
        names = [step["name"] for step in of_run if step["status"] == status]
        if names:
            word = "NOT CHECKED, the tool is missing or does not work" if status == "unavailable" else status.upper()
            lines.append(f"{word}: {', '.join(names)}")
    return lines


def _table(head, right, lines):
    return [
        "| " + " | ".join(head) + " |",
        "|" + "|".join("---:" if i in right else "---" for i in range(len(head))) + "|",
        *("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in lines),
    ]


def _steps(steps):
    lines = []
    for step in steps:
        counts = step.get("counts", {})
        said = [f"{counts[word]} {word}" for word in ("passed", "failed", "skipped") if counts.get(word)]
        said += [f"{step['checked']} atoms"] if "checked" in step else []
        said += [f"{step['measured']} times"] if "measured" in step else []
        said += [step["why"]] if "why" in step else []
        said += [f"earlier run, {step.get('started', '')}"] if step.get("earlier") else []
        seconds = f"{step['seconds']:.0f}" if "seconds" in step else ""
        lines.append([step["name"], _MARKS.get(step["status"], step["status"]), seconds, ", ".join(said)])
    return _table(("step", "result", "s", ""), {2}, lines)


def _rows(rows):
    lines = []
    for row, result in rows.items():
        word = "passed" if result["passed_all"] else "**FAILED**" if result["failed"] else "not complete"
        lines.append([row, word, *(str(result[key]) for key in ("passed", "failed", "skipped"))])
    return _table(("row", "all its tests", "passed", "failed", "skipped"), {2, 3, 4}, lines)


def _best(rows, side):
    """{(layer, batch, mode, pass): the fastest row of a side}"""
    found = {}
    for row in rows:
        key = row["layer"], row["batch"], row["mode"], row["pass"]
        if row["side"] == side and (key not in found or row["seconds"] < found[key]["seconds"]):
            found[key] = row
    return found


def _ratio_means(rows):
    """Geometric means of the ratios by algorithm, mode and pass, each problem in its better layout."""
    best = {}
    for row in rows:
        if row["side"] == "fastconv" and row.get("ratio"):
            key = row["algorithm"], row["mode"], row["pass"], row["layer"], row["batch"]
            best[key] = max(best.get(key, 0.0), row["ratio"]["median"])
    groups = {}
    for (algorithm, mode, direction, *_), ratio in best.items():
        groups.setdefault((algorithm, mode), {}).setdefault(direction, []).append(ratio)
    lines = []
    for (algorithm, mode), passes in groups.items():
        cells = []
        for direction in ("forward", "grad_input", "grad_weight"):
            ratios = passes.get(direction)
            cells.append(f"{geometric_mean(ratios):.3g} ({len(ratios)})" if ratios else "")
        lines.append([algorithm, mode, *cells])
    return _table(("row", "mode", "forward", "grad_input", "grad_weight"), {2, 3, 4}, lines)


def _layers(rows):
    ours, theirs = _best(rows, "fastconv"), _best(rows, "pytorch")
    lines = []
    for key, row in ours.items():
        peer = theirs.get(key)
        layer, batch, mode, direction = key
        lines.append([
            layer, str(batch), mode, direction, f"{row['algorithm']} {row['layout']}", f"{row['seconds'] * 1e6:.4g}",
            f"{row['spread']:.1%}", peer["layout"] if peer else "", f"{peer['seconds'] * 1e6:.4g}" if peer else "",
            f"{peer['seconds'] / row['seconds']:.3g}" if peer else "", f"{row['tflops']:.4g}",
            f"{row['gbytes_per_second']:.4g}",
        ])  # fmt: skip
    head = ("layer", "n", "mode", "pass", "our best", "us", "spread", "PyTorch", "us", "ratio", "TFLOP/s", "GB/s")
    text = _table(head, {1, 5, 6, 8, 9, 10, 11}, lines[:_MOST_LAYERS])
    return text + ([f"\n{len(lines) - _MOST_LAYERS} more are in speed.json."] if len(lines) > _MOST_LAYERS else [])


def markdown(data, speed=None):
    """The whole summary."""
    facts = data["environment"]
    smi = facts.get("nvidia_smi") or {}
    commit = f"commit {data['commit'][:10]}{' (modified)' if data['modified'] else ''}" if data["commit"] else "no git"
    text = [
        f"# gpu-check on {data['gpu'] or 'no GPU'}",
        "",
        f"{data['started']}, {data['seconds']:.0f} s, {commit}{', quick' if data['quick'] else ''}  ",
        f"torch {facts.get('torch')}, CUDA {facts.get('cuda')}, cuDNN {facts.get('cudnn')}, driver "
        f"{smi.get('driver_version', 'unknown')}, nvcc {facts.get('nvcc_version')}, Python {facts.get('python')}",
        "",
        *(f"* {line}" for line in verdict(data)),
        "",
        *_steps(data["steps"]),
    ]
    if any(step["name"].startswith("rows:") for step in data["steps"]):
        text += ["", "## Rows", "", *_rows(data["rows"])]
    wrong = [step for step in data["steps"] if step.get("errors")]
    if wrong:
        text += ["", "## Errors"]
        for step in wrong:
            text += ["", f"{step['name']} ({step.get('log', 'no log')}):", "", "```", *step["errors"], "```"]
    if speed and speed["rows"]:
        text += ["", "## Speed", "", f"PyTorch's time over ours, {speed['compared']}. Geometric means (layers):", ""]
        text += [*_ratio_means(speed["rows"]), "", *_layers(speed["rows"])]
        if speed["stopped_by"]:
            text += ["", f"Ended by {speed['stopped_by']}: {len(speed['not_reached'])} layers were not reached."]
    return "\n".join(text) + "\n"
