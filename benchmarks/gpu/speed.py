"""`python -m benchmarks.gpu.speed`: every CUDA row against PyTorch on the weightiest layers of six networks.

The clocks, operands and turns are those of gpu-baseline. Each result is compared with float64 on the same operands
first, ours and PyTorch's; what fails is not timed. Forward and both gradients, in both layouts; float32 is without TF32
on both sides. Writes speed.json.
"""

import argparse
import contextlib
import math
import pathlib
import sys
import time

import fastconv
import torch
from fastconv import ops

from .. import files, measure
from ..layers import pair
from ..models import LAYOUTS
from . import check_summary, layers, machine, peers, plan, problems, summary
from .baseline import Baseline
from .contestants import Contestant
from .device import open_device
from .modes import MODES, set_math

SCHEMA = 1
_MODES = ("bf16", "fp32")
_BATCH = 32
_SLOW = 0.3  # seconds of a first call beyond which a row is not timed: it would cost the others their time
_COMPARED = (
    "the faster of NCHW and channels_last with cudnn.benchmark=True in the same math mode; rounds in turns, the "
    "median of their ratios"
)


def groups(few, dry=False):
    """The layers to time, the most wanted first: each network's weightiest in turn, depthwise ones and pools."""
    convs = layers.distinct(("conv",), dry)
    dense = [layer for layer in convs if layer.layer.groups == 1]
    grouped = [layer for layer in convs if layer.layer.groups > 1]
    count = 2 if few or dry else 5
    kinds = [(dense, count), (grouped, count)]
    kinds += [(layers.distinct((kind,), dry), count - 1) for kind in ("max", "avg")]
    ranked = [layers.leading(found, network, most) for found, most in kinds for network in layers.NETWORKS]
    wanted = {}
    for mode in _MODES:
        for rank in range(count):
            for found in ranked:
                if rank < len(found):
                    group = plan.Group(found[rank], 2 if dry else _BATCH, mode)
                    wanted.setdefault(group.key(), group)
    return list(wanted.values())


def conv_calls(layer, row, accuracy):
    """{pass: f(x, weight, dy)} of one of our rows."""
    stride, padding = list(pair(layer.stride)), list(pair(layer.padding)) * 2
    tail = (stride, padding, [1, 1], layer.groups, "none", row, accuracy)
    return {
        "forward": lambda x, w, dy: ops.conv2d(x, w, None, None, *tail),
        "grad_input": lambda x, w, dy: ops.conv2d_grad_input(dy, w, None, x.shape, *tail),
        "grad_weight": lambda x, w, dy: ops.conv2d_grad_weight(x, dy, None, w.shape, False, *tail)[0],
    }


def pool_calls(layer):
    """{pass: f(x, dy, offsets)}; the offsets are those of our forward pass."""
    window, stride, padding = (list(pair(value)) for value in (layer.window, layer.stride, layer.padding))
    ceil = layer.ceil_mode
    if layer.kind == "max":
        tail = (window, stride, padding, [1, 1], ceil)
        return {
            "forward": lambda x, dy, offsets: ops.max_pool2d_values(x, *tail),
            "grad_input": lambda x, dy, offsets: ops.max_pool2d_backward(dy, offsets, x.shape, *tail),
        }
    tail = (window, stride, padding, ceil, True, None)
    return {
        "forward": lambda x, dy, offsets: ops.avg_pool2d(x, *tail),
        "grad_input": lambda x, dy, offsets: ops.avg_pool2d_backward(dy, x.shape, *tail),
    }


def offsets_of(layer, x):
    window, stride, padding = (list(pair(value)) for value in (layer.window, layer.stride, layer.padding))
    return ops.max_pool2d(x, window, stride, padding, [1, 1], layer.ceil_mode)[1] if layer.kind == "max" else None


class Speed(Baseline):
    """A baseline's clocks and turns, with our rows among the contestants. `kind` is the rows' device in the table."""

    def __init__(self, options, device, kind="cuda", began=None):
        super().__init__(options, device, began)
        self.kind, self.failed = kind, []
        if kind != "cuda":
            self.facts["device"] = kind

    def run(self):
        torch.backends.cudnn.benchmark = True
        self.waiting = groups(self.options.few, self.options.dry)
        try:
            with torch.no_grad():
                self._measure_groups()
            if self.waiting and self.stopped is None:
                self.stopped = f"the budget of {self.options.budget:g} s"
        except KeyboardInterrupt:
            self.stopped = "an interrupt"
        except RuntimeError as error:  # the GPU is lost
            self.stopped, self.broken = f"an error ({str(error).splitlines()[0][:200]})", True
        finally:
            self.clocks.stop()
            self.write()

    def _predicted(self, group):
        return max(self._group_seconds[-10:], default=0.0) / 2

    # Contestants

    def _measure(self, group):
        set_math(MODES[group.mode])
        try:
            theirs = self._theirs(group)
            ours = [one for layout in LAYOUTS for one in self._ours(group, layout, theirs)]
        except RuntimeError as error:  # too large for the memory there is
            self._skip(error, group.words())
            self.device.synchronize()
            return
        entered = self._checked(group, [*theirs, *ours])
        if any(one.row["side"] == "fastconv" for one in entered):
            self._together(entered, share=self.left() / max(1, len(self.waiting)))
            compare(entered)

    def _theirs(self, group):
        variants = ("forward", "grad_input", "grad_weight", "forward_mean", "grad_input_mean")
        usable = {(group.kind, variant, layout) for variant in variants for layout in LAYOUTS}
        found = self._contestants(group, usable)
        for one in found:
            one.row.update(side="pytorch", algorithm="torch")
        return found

    def _sets(self, group, layout, copies):
        """The operands of the group's contestants in this layout: (x, weight, dy), or (x, dy)."""
        layer, shape, arena = group.layer.layer, group.layer.shape, self.arena(MODES[group.mode])
        if layer.kind == "conv":
            x, weight, y = problems.conv_sizes(layer, shape, group.batch)
            sets = arena.sets(copies, (x, layout), (weight, layout), ((layer.k,),), (y, layout))
            return [(x, weight, dy) for x, weight, _, dy in sets]
        return arena.sets(copies, ((group.batch, *shape), layout), ((group.batch, *layer.output_shape(shape)), layout))

    def _ours(self, group, layout, theirs):
        """Every row of ours that takes one of the problems."""
        layer = group.layer.layer
        bases = [one for one in theirs if one.row["layout"] == layout and "mean" not in one.row["variant"]]
        if not bases:
            return []
        sets = self._sets(group, layout, bases[0].copies)
        if layer.kind == "max":
            with self._where({"side": "fastconv"}):
                sets = [(x, dy, offsets_of(layer, x)) for x, dy in sets]
        elif layer.kind == "avg":
            sets = [(x, dy, None) for x, dy in sets]
        found = []
        for base in bases:
            answers = ops.extension().explain(base.row["problem"], device=self.kind)
            for answer in answers:
                if not answer["ok"] or answer["device"] != self.kind:
                    continue
                name, direction = answer["name"], base.row["pass"]
                calls = conv_calls(layer, name, fastconv.get_accuracy()) if layer.kind == "conv" else pool_calls(layer)
                row = {**base.row, "side": "fastconv", "algorithm": name, "chosen": bool(answer["chosen"])}
                call = lambda i, call=calls[direction]: call(*sets[i])  # noqa: E731
                found.append(Contestant(row, call, base.copies))
        return found

    def _where(self, row):
        """What a row is called within: on the CPU, ours goes to the emulator."""
        emulated = self.kind == "simulated" and row["side"] == "fastconv"
        return fastconv.simulated_gpu() if emulated else contextlib.nullcontext()

    # Checks

    def _reference_of(self, group, layout, direction, copies):
        """The pass on the first copy of the operands, in float64 on their own device."""
        layer, first = group.layer.layer, self._sets(group, layout, copies)[0]
        tuned, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False  # it is called once
        try:
            on = first[0].device
            if layer.kind == "conv":
                x, weight, dy = first
                return peers.conv_reference(layer, direction, x, weight, weight, dy, on)
            x, dy = first
            places = peers.max_indices(layer, x.contiguous()) if layer.kind == "max" else None
            return peers.pool_reference(layer, direction, x, dy, places, on)
        finally:
            torch.backends.cudnn.benchmark = tuned

    def _checked(self, group, entered):
        """Those whose first call gives what float64 does; ours that do not are in `failed`."""
        passed, by_result = [], {}
        for one in entered:
            by_result.setdefault((one.row["layout"], one.row["pass"]), []).append(one)
        for (layout, direction), members in by_result.items():
            try:
                reference = self._reference_of(group, layout, direction, members[0].copies)
            except RuntimeError as error:
                self._skip(error, f"no reference for {members[0].row['problem']}")
                self.device.release()
                self.device.synchronize()
                continue
            passed += [one for one in members if self._right(one, reference, self._bound(group, direction))]
            del reference
            self.device.release()
        return passed

    @staticmethod
    def _bound(group, direction):
        """The mode's, which is for sums of some thousands; a gradient of a filter sums over all maps of the batch, and
        float32 summed in sequence is then off by 2^-24 sqrt(terms / 2)."""
        layer, bound = group.layer.layer, MODES[group.mode].bound
        if layer.kind != "conv" or direction != "grad_weight" or group.mode == "fp64":
            return bound
        _, p, q = layer.output_shape(group.layer.shape)
        return bound + 2**-24 * math.sqrt(group.batch * p * q)

    def _right(self, one, reference, bound):
        row, why = one.row, None
        try:
            # The result would otherwise be given the memory of the one before, which was right.
            torch.full(reference.shape, float("nan"), dtype=MODES[row["mode"]].dtype, device=reference.device)
            with self._where(row):
                row["error"] = peers.distance(one.call(0), reference)
            if not row["error"] <= bound:
                why = f"error {row['error']:.2g} exceeds {bound:g}"
        except torch.OutOfMemoryError as error:
            self._skip(error, f"{row['algorithm']}: {row['problem']}")
            return False
        except RuntimeError as error:
            why = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
        if why and row["side"] == "fastconv":
            self.failed.append({"algorithm": row["algorithm"], "problem": row["problem"], "why": why})
        elif why:
            self._skip(why, f"{row['algorithm']} {row['variant']}: {row['problem']}")
        if why:
            self.device.synchronize()  # raises if the GPU itself is lost, which ends the run
        return not why

    def _prepare(self, contestant):
        row = contestant.row
        with self._where(row):
            if row["side"] == "fastconv" and not self.options.dry:
                try:
                    slow = self.device.once(contestant.call) > _SLOW
                except RuntimeError as error:
                    self._drop(contestant, error)
                    return False
                if slow:
                    self._skip(f"a call takes over {_SLOW} s", f"{row['algorithm']}: {row['problem']}")
                    return False
            return super()._prepare(contestant)

    def _sample(self, contestant):
        with self._where(contestant.row):
            super()._sample(contestant)

    # Results

    def write(self):
        best = summary.peaks([])
        unused = ("uses", "first_call_seconds")  # the check's call came first: that was the one which autotuned
        kept = [{key: value for key, value in row.items() if key not in unused} for row in self.rows]
        rows = [summary.with_rates(row, best) for row in kept]
        data = {
            "schema": SCHEMA,
            "kind": "fastconv gpu speed",
            "started": self.started,
            "seconds": self.elapsed(),
            "budget_seconds": self.options.budget,
            "few": self.options.few,
            "stopped_by": self.stopped,
            "machine": self.facts,
            "clocks": machine.clock_summary(self.clocks.samples),
            "timer": self.device.timing,
            "compared": _COMPARED,
            "skipped": self.skipped,
            "not_reached": [group.words() for group in self.waiting],
            "failed": self.failed,
            "rows": rows,
        }
        folder = pathlib.Path(self.options.out)
        folder.mkdir(parents=True, exist_ok=True)
        files.replace(folder / "speed.json", check_summary.json_text(summary.short(data)))
        self._written = time.perf_counter()


def compare(entered):
    """Give each of our rows its ratio to the best peer of the same pass, of any layout."""
    for one in entered:
        rivals = [
            peer
            for peer in entered
            if peer.row["side"] == "pytorch" and peer.row["pass"] == one.row["pass"] and "seconds" in peer.row
        ]
        if one.row["side"] != "fastconv" or "seconds" not in one.row or not rivals:
            continue
        best = min(rivals, key=lambda peer: peer.row["seconds"])
        rounds = min(len(best.samples), len(one.samples))  # the budget may have ended within a round
        one.row["ratio"] = measure.ratio(best.samples[:rounds], one.samples[:rounds])
        one.row["peer"] = {"layout": best.row["layout"], "variant": best.row["variant"], "seconds": best.row["seconds"]}


def parser():
    top = argparse.ArgumentParser(prog="python -m benchmarks.gpu.speed", description=__doc__)
    option = top.add_argument
    option("--out", required=True, metavar="FOLDER", help="for speed.json")
    option("--budget", type=float, default=240.0, metavar="SECONDS", help="for the whole run (default 240)")
    option("--few", action="store_true", help="two layers of each network instead of five")
    option("--device", choices=("cuda", "simulated"), default="cuda",
           help="simulated: a dry run on the CPU with sizes cut down, our rows in the emulator")  # fmt: skip
    return top


def main(argv=None):
    """Returns the exit status: 0; 1 without a GPU, if a result was wrong, or if nothing was timed; 130 after Ctrl-C."""
    began = time.perf_counter()
    options = parser().parse_args(argv)
    options.dry = options.quick = options.device == "simulated"
    try:
        device = open_device("cpu" if options.dry else "cuda")
    except RuntimeError as missing:
        print(f"error: gpu speed: {missing}", file=sys.stderr)
        return 1
    if options.dry:
        torch.set_num_threads(1)  # operators of microseconds: waiting for a second thread takes milliseconds
    speed = Speed(options, device, options.device, began)
    speed.run()
    ours = [row for row in speed.rows if row["side"] == "fastconv"]
    print(f"{len(ours)} times of {len({row['problem'] for row in ours})} problems in {speed.elapsed():.0f} s")
    for line in speed.failed:
        print(f"error: {line['algorithm']}, {line['problem']}: {line['why']}")
    for reason, what in speed.skipped.items():
        print(f"skipped {len(what)}: {reason} (first: {what[0]})")
    if speed.stopped:
        print(f"ended by {speed.stopped}; {len(speed.waiting)} layers were not reached")
    if speed.stopped == "an interrupt":
        return 130
    return 1 if speed.broken or speed.failed or not ours else 0


if __name__ == "__main__":
    sys.exit(main())
