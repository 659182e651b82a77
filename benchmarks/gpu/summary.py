"""A run as JSON, as markdown and on a terminal: machine, checks, geometric means, what was not reached."""

import json
import math
import sys

from .. import files
from ..files import finite
from ..table import Column, Table
from . import layers, machine

SCHEMA = 1
_VARIANTS = ("forward", "forward_bias_relu", "forward_bias_relu_fused", "grad_input", "grad_weight")
_POOL_VARIANTS = ("forward", "grad_input", "forward_mean", "grad_input_mean")


def geometric_mean(values):
    """The n-th root of a product of n positive numbers."""
    values = list(values)
    return math.exp(sum(map(math.log, values)) / len(values))


def peaks(rows):
    """The best rates of this machine: bytes per second of a copy (read and written), FLOP/s of a product by mode."""
    copies = [row["minimum_bytes"] / row["seconds"] for row in rows if row["kind"] == "copy"]
    products = {}
    for row in rows:
        if row["kind"] == "gemm":
            rate = row["flops"] / row["seconds"]
            products[row["mode"]] = max(rate, products.get(row["mode"], 0.0))
    return {"copy_bytes_per_second": max(copies, default=None), "gemm_flops_per_second": products}


def with_rates(row, best):
    """The row and what follows from its time: TFLOP/s, GB/s, and shares of the machine's own best rates."""
    copy, product = best["copy_bytes_per_second"], best["gemm_flops_per_second"].get(row.get("mode"))
    flops, moved, seconds = row["flops"], row["minimum_bytes"], row["seconds"]
    rates = {"tflops": flops / seconds / 1e12, "gbytes_per_second": moved / seconds / 1e9}
    if copy:
        rates["of_copy"] = moved / seconds / copy
    if product and row["kind"] in ("conv", "gemm"):
        rates["of_gemm"] = flops / seconds / product
        if copy:
            rates["of_roofline"] = max(flops / product, moved / copy) / seconds
    return {**row, **rates}


def means(rows):
    """Geometric means over the distinct layers of each network, batch, mode, layout and variant that were measured.

    Returns a list of {"network", "batch", "mode", "layout", "kind", "variant", "layers", "of" (how many distinct
    layers the network has), "tflops", "gbytes_per_second", "of_roofline" (convolutions)}. Kind: conv, pool or gemm.
    """
    counted = {"conv": layers.distinct(("conv",)), "pool": layers.distinct(("max", "avg"))}
    groups = {}
    for row in rows:
        kind = row["kind"] if row["kind"] in ("conv", "gemm") else "pool"
        for network in row["uses"]:
            key = network, row["batch"], row["mode"], row.get("layout", ""), kind, row["variant"]
            groups.setdefault(key, []).append(row)
    found = []
    for key, members in groups.items():
        network, batch, mode, layout, kind, variant = key
        mean = {"network": network, "batch": batch, "mode": mode, "layout": layout, "kind": kind, "variant": variant}
        mean["layers"] = len(members)
        mean["of"] = sum(network in layer.uses for layer in counted["pool" if kind == "pool" else "conv"])
        for figure in ("tflops", "gbytes_per_second", "of_roofline", "of_copy"):
            values = [row[figure] for row in members if row.get(figure)]
            if len(values) == len(members):
                mean[figure] = geometric_mean(values)
        found.append(mean)
    return found


def not_reached(groups):
    """[{"batch", "mode", "layers": [names]}] of the groups that no time was left for."""
    found = {}
    for group in groups:
        found.setdefault((group.batch, group.mode), []).append(group.layer.name())
    return [{"batch": batch, "mode": mode, "layers": names} for (batch, mode), names in found.items()]


def as_json(run):
    """Everything but the rows, and the rows: (dict, list)."""
    best = peaks(run.rows)
    rows = [with_rates(row, best) for row in run.rows]
    header = {
        "schema": SCHEMA,
        "kind": "fastconv gpu baseline",
        "started": run.started,
        "seconds": run.elapsed(),
        "budget_seconds": run.options.budget,
        "quick": run.options.quick,
        "stopped_by": run.stopped,
        "machine": run.facts,
        "clocks": {"while_busy": machine.clock_summary(run.clocks.samples), "samples": run.clocks.samples},
        "peak_memory_bytes": run.device.peak_memory(),
        "method": run.method(),
        "checks": run.checks,
        "peaks": best,
        "networks": {name: source for name, (source, _) in layers.NETWORKS.items()},
        "skipped": run.skipped,
        "not_reached": not_reached(run.waiting),
        "means": means([row for row in rows if row["uses"]]),
    }
    return header, rows


def short(value):
    """Six significant digits: more than any of these times has."""
    if isinstance(value, dict):
        return {key: short(item) for key, item in value.items()}
    if isinstance(value, list):
        return [short(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) and math.isfinite(value) else value


def json_text(header, rows):
    """JSON with one line for each row, mean and clock sample, so that results can be compared line by line."""
    header, rows = finite(short(header)), finite(short(rows))
    line = lambda value: json.dumps(value, allow_nan=False)  # noqa: E731
    lists = {"means": header.pop("means"), "rows": rows}
    parts = [f"{line(key)}: {line(value)}" for key, value in header.items()]
    for key, items in lists.items():
        parts.append(f"{line(key)}: [\n" + ",\n".join(" " + line(item) for item in items) + "\n]")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def write(run, folder):
    """baseline.json and baseline.md in `folder`, each whole or as it was."""
    folder.mkdir(parents=True, exist_ok=True)
    header, rows = as_json(run)
    files.replace(folder / "baseline.json", json_text(header, rows))
    files.replace(folder / "baseline.md", markdown(header, rows))


# For readers


def head(header):
    """The lines above the tables."""
    facts, best = header["machine"], header["peaks"]
    smi = facts.get("nvidia_smi") or {}
    driver = f", driver {smi['driver_version']}" if "driver_version" in smi else ""
    git = facts["git"]
    lines = [
        f"{facts['device']}{driver}; torch {facts['torch']}, CUDA {facts['cuda']}, cuDNN {facts['cudnn']}; "
        f"{header['started']}, {header['seconds']:.0f} s"
        + (f", commit {git['commit'][:10]}{' (modified)' if git['modified'] else ''}" if git else "")
    ]
    if best["copy_bytes_per_second"]:
        copy = f"{best['copy_bytes_per_second'] / 1e9:.5g}"
        products = ", ".join(f"{mode} {rate / 1e12:.4g}" for mode, rate in best["gemm_flops_per_second"].items())
        lines.append(f"best copy {copy} GB/s; best matrix product, TFLOP/s: {products}")
    clock = header["clocks"]["while_busy"].get("clocks.sm")
    if clock:
        lines.append(
            f"SM clock while busy: {clock['median']:.0f} MHz ({clock['least']:.0f} to {clock['most']:.0f}, "
            f"{len(header['clocks']['samples'])} readings)"
        )
    if header["quick"]:
        lines.append("A dry run with sizes cut down: these numbers are no benchmark.")
    return lines


def tail(header):
    """The lines below the tables: failed checks, what was skipped or not reached, and why."""
    lines = []
    for mode, check in header["checks"].items():
        for name, error in check["failed"].items():
            lines.append(f"FAILED, not measured: {mode} {name}, error {error:.2g} exceeds {check['bound']:g}")
        if check["unsupported"]:
            lines.append(f"not supported here: {mode} {', '.join(check['unsupported'])}")
    for reason, what in header["skipped"].items():
        lines.append(f"skipped {len(what)}: {reason} (first: {what[0]})")
    if header["stopped_by"]:
        lines.append(f"Ended by {header['stopped_by']}.")
    for part in header["not_reached"]:
        lines.append(f"not reached: batch {part['batch']} {part['mode']}, {len(part['layers'])} layers")
    return lines


def _cell(mean):
    if mean is None:
        return ""
    share = mean.get("of_roofline")
    return f"{mean['tflops']:.4g}" + (f" ({share:.0%})" if share is not None else "")


def _keyed(found, kinds):
    """{(network, batch, mode, layout): {variant: mean}} in the networks' order."""
    lines = {}
    for mean in found:
        if mean["kind"] in kinds:
            key = mean["network"], mean["batch"], mean["mode"], mean["layout"]
            lines.setdefault(key, {})[mean["variant"]] = mean
    order = list(layers.NETWORKS)
    return dict(sorted(lines.items(), key=lambda item: (order.index(item[0][0]), item[0][1:])))


def conv_table(header):
    """Geometric means of TFLOP/s, with the share of the roofline, by network, batch, mode and layout."""
    right = {"right": True}
    figures = ("forward", "+bias+ReLU", "fused", "grad_input", "grad_weight", "GEMM")
    table = Table(
        "convolutions: geometric means over distinct layers, TFLOP/s (share of this machine's roofline)",
        [
            *(Column(name) for name in ("network", "batch", "mode", "layout")),
            Column("layers", **right),
            *(Column(name, **right) for name in figures),
        ],
    )
    products = {key[:3]: line["mm"] for key, line in _keyed(header["means"], ("gemm",)).items()}
    for key, line in _keyed(header["means"], ("conv",)).items():
        network, batch, mode, layout = key
        most = max(line.values(), key=lambda mean: mean["layers"])
        cells = [_cell(line.get(variant)) for variant in _VARIANTS] + [_cell(products.get(key[:3]))]
        table.row([network, str(batch), mode, layout, f"{most['layers']}/{most['of']}", *cells])
    table.note(
        "+bias+ReLU: eager PyTorch, ReLU in place; fused: cudnn_convolution_relu. GEMM: matrix products of the same "
        "sizes, each distinct one once; none for depthwise layers."
    )
    return table


def pool_table(header):
    """Geometric means of GB/s, counted as the least bytes that must move."""
    right = {"right": True}
    names = ("forward", "grad_input", "global mean", "its gradient")
    table = Table(
        "pools: geometric means over distinct layers, GB/s of the least bytes (share of the best copy)",
        [
            *(Column(name) for name in ("network", "batch", "mode", "layout")),
            *(Column(name, **right) for name in names),
        ],
    )
    for (network, batch, mode, layout), line in _keyed(header["means"], ("pool",)).items():
        cells = []
        for variant in _POOL_VARIANTS:
            mean = line.get(variant)
            share = f" ({mean['of_copy']:.0%})" if mean and "of_copy" in mean else ""
            cells.append(f"{mean['gbytes_per_second']:.4g}{share}" if mean else "")
        table.row([network, str(batch), mode, layout, *cells])
    return table


def machine_table(rows):
    """Copies by size and square products by mode."""
    table = Table(
        "copies (read and written) and square matrix products",
        [Column("what"), Column("us", right=True), Column("GB/s", right=True), Column("TFLOP/s", right=True)],
    )
    for row in rows:
        if not row["uses"]:
            rate = f"{row['tflops']:.4g}" if row["flops"] else ""
            table.row([row["problem"], f"{row['seconds'] * 1e6:.4g}", f"{row['gbytes_per_second']:.5g}", rate])
    return table


def tables(header, rows):
    return [table for table in (machine_table(rows), conv_table(header), pool_table(header)) if table.rows]


def markdown(header, rows):
    """The whole summary; notes and rows as markdown tables."""
    text = ["# What PyTorch's kernels reach on this GPU", "", *(f"{line}  " for line in head(header))]
    for table in tables(header, rows):
        text += ["", f"## {table.title[0].upper()}{table.title[1:]}", ""]
        text.append("| " + " | ".join(column.name for column in table.columns) + " |")
        text.append("|" + "|".join("---:" if column.right else "---" for column in table.columns) + "|")
        text += ["| " + " | ".join(cells) + " |" for cells in table.rows]
        text += ["", *table.notes] if table.notes else []
    ending = [f"* {line}" for line in tail(header)]
    return "\n".join([*text, *(["", "## Not measured", "", *ending] if ending else [])]) + "\n"


def show(run):
    """Print the summary; with rich on a terminal, if it is installed."""
    header, rows = as_json(run)
    print("\n".join(head(header)) + "\n")
    for table in tables(header, rows):
        try:
            table.print()
        except ImportError:  # rich is optional here
            sys.stdout.write(table.text() + "\n")
    print("\n".join([*tail(header), f"written: {run.folder() / 'baseline.json'}, baseline.md"]))
