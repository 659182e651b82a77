"""`python -m benchmarks.gpu.baseline`: what cuDNN, cuBLAS and PyTorch's own kernels reach on this GPU, in 5 minutes.

Convolutions (three passes), pools, matrix products of the same sizes and plain copies, in five dtypes and math modes
and both layouts; needs torch alone. Each dtype's results are checked against float64 first, and what fails is not
timed. All that one layer can be timed with takes turns, round by round; caches are cold, since calls rotate among
copies of their operands. See --help for what is written.
"""

import argparse
import pathlib
import re
import signal
import statistics
import sys
import time

import torch

from .. import measure
from ..layers import AvgPool, Conv, MaxPool
from . import contestants, layers, machine, peers, plan, problems, summary
from .device import Arena, TooLarge, open_device
from .modes import MODES, set_math

_LEAST_ROUNDS, _MOST_ROUNDS = 5, 21
_WRITE_EVERY = 20.0  # seconds
# Autotuning tries up to 10 algorithms some 4 times each, and rounds run each call some 10 times more: what a group
# costs, in runs of all its calls at a third of the best matrix product's rate. It decides what still fits only.
_RUNS_OF_A_GROUP, _RATE_OF_A_GROUP = 50, 0.3
_CHECKED = (
    (Conv("3x3", 48, 3, padding=1, bias=False), (32, 17, 15)),
    (Conv("3x3 stride 2, 2 groups", 32, 3, stride=2, padding=1, groups=2, bias=False), (16, 14, 13)),
    (MaxPool("max", 3, 2, 1), (8, 15, 13)),
    (AvgPool("mean", 7, 1), (8, 7, 7)),
)


class Baseline:
    """One run. What was measured stays in `rows`, whatever stops the rest."""

    def __init__(self, options, device, began=None):
        self.options, self.device = options, device
        self.began = time.perf_counter() if began is None else began
        self.started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self.rows, self.checks = [], {}
        self.skipped = {}  # reason -> what
        self.waiting = []  # groups that were not reached
        self.stopped = None  # why the run ended before its plan did
        self.broken = False
        self.clocks = machine.Clocks(device)
        self.facts = machine.facts(device)
        self._arenas, self._products = {}, {}
        self._group_seconds = []
        self._written = time.perf_counter()
        self._sample_seconds = 2e-4 if options.quick else 2e-3

    def elapsed(self):
        return time.perf_counter() - self.began

    def left(self):
        return self.options.budget - self.elapsed()

    def run(self):
        torch.backends.cudnn.benchmark = True
        self.waiting = plan.groups(self.options.networks, self.options.modes, self.options.batches, self.options.quick)
        try:
            with torch.no_grad():
                self._check_modes()
                self._measure_machine()
                self._measure_groups()
            if self.waiting and self.stopped is None:
                self.stopped = f"the budget of {self.options.budget:g} s"
        except KeyboardInterrupt:
            self.stopped = "an interrupt"
        except RuntimeError as error:  # the GPU is lost: each of its calls would fail from now on
            self.stopped, self.broken = f"an error ({_first_line(error)})", True
        finally:
            self.clocks.stop()
            self.write()

    def arena(self, mode):
        if mode.dtype not in self._arenas:
            self._arenas[mode.dtype] = Arena(self.device, mode.dtype)
        return self._arenas[mode.dtype]

    # Checks

    def _check_modes(self):
        for name in self.options.modes:
            mode = MODES[name]
            check = {"bound": mode.bound, "errors": {}, "failed": {}, "unsupported": {}}
            check["interface"] = set_math(mode)
            self.checks[name] = check
            for layer, shape in _CHECKED:
                group = plan.Group(layers.Distinct(layer, shape, {}), 2, name)
                for contestant in self._contestants(group, None):
                    self._check(check, contestant, self._reference(group, contestant, mode))
            product = contestants.gemm(67, 35, 129, mode, self.device, self.arena(mode))
            a, b = self.arena(mode).sets(1, ((67, 129),), ((35, 129),))[0]
            self._check(check, product, lambda a=a, b=b: a.double().cpu() @ b.double().cpu().t())

    def _reference(self, group, contestant, mode):
        """A function that computes in float64 what the contestant's first call must give."""
        layer, shape, layout = group.layer.layer, group.layer.shape, contestant.row["layout"]
        arena, variant, copies = self.arena(mode), contestant.row["variant"], contestant.copies
        if layer.kind == "conv":
            x, weight, y = problems.conv_sizes(layer, shape, group.batch)
            first = arena.sets(copies, (x, layout), (weight, layout), ((layer.k,),), (y, layout))[0]
            return lambda: peers.conv_reference(layer, variant, *first)
        x, y = (group.batch, *shape), (group.batch, *layer.output_shape(shape))
        x, dy = arena.sets(copies, (x, layout), (y, layout))[0]
        places = peers.max_indices(layer, x) if layer.kind == "max" else None
        return lambda: peers.pool_reference(layer, variant, x, dy, places)

    @staticmethod
    def _check(check, contestant, reference):
        """Compare the first call with the reference; keep the largest error of its kind, variant and layout."""
        row = contestant.row
        name = f"{row['kind']} {row['variant']} {row.get('layout', '')}".strip()
        try:
            error = peers.distance(contestant.call(0), reference())
        except RuntimeError as refusal:
            check["unsupported"][name] = _first_line(refusal)
            return
        check["errors"][name] = max(error, check["errors"].get(name, 0.0))
        if not error <= check["bound"]:
            check["failed"][name] = error

    def usable(self, mode):
        """{(kind, variant, layout)} whose check passed."""
        check = self.checks[mode]
        return {(*name.split(" "), "")[:3] for name in check["errors"] if name not in check["failed"]}

    # Measuring

    def _measure_machine(self):
        """Copies and square matrix products: the rates that everything else is compared with."""
        dtype = MODES["fp32"] if "fp32" in self.options.modes else MODES[self.options.modes[0]]
        arena = self.arena(dtype)
        most = arena.numel() * arena.element_size() // 2
        sizes = [1 << power for power in range(14 if self.options.quick else 20, 32, 2 if self.options.quick else 1)]
        self._together([contestants.copy(size, self.device, arena) for size in sizes if size <= most])
        for name in self.options.modes:
            mode = MODES[name]
            set_math(mode)
            for size in (64, 128) if self.options.quick else (2048, 4096, 8192):
                if ("gemm", "mm", "") not in self.usable(name) or size > 2048 and 2 * size**3 / self._rate(name) > 0.1:
                    continue  # 0.1 s: a product that takes longer costs the budget more than it tells
                try:
                    self._together([contestants.gemm(size, size, size, mode, self.device, self.arena(mode))])
                except TooLarge as error:
                    self._skip(error, f"{size} x {size} x {size} {name}")
            self.device.release()

    def _rate(self, mode):
        """The best FLOP/s of a matrix product so far."""
        rates = [row["flops"] / row["seconds"] for row in self.rows if row["kind"] == "gemm" and row["mode"] == mode]
        return max(rates, default=1e12)

    def _measure_groups(self):
        later = []
        while self.waiting:
            group = self.waiting[0]
            self.clocks.poll()
            if self.left() <= 0:
                break
            if self._predicted(group) > self.left():
                later.append(self.waiting.pop(0))  # a smaller one may still fit
                continue
            begin = time.perf_counter()
            self._measure(group)
            self.waiting.pop(0)
            self._group_seconds.append(time.perf_counter() - begin)
            if time.perf_counter() - self._written > _WRITE_EVERY:
                self.write()
        self.waiting = later + self.waiting

    def _predicted(self, group):
        recent = self._group_seconds[-20:]
        flops = 10 * group.layer.layer.flops(group.layer.shape, group.batch) if group.kind == "conv" else 0
        work = _RUNS_OF_A_GROUP * flops / (_RATE_OF_A_GROUP * self._rate(group.mode))
        return (statistics.median(recent) if recent else 0.0) + (0 if self.options.quick else work)

    def _contestants(self, group, usable):
        make = contestants.convolutions if group.kind == "conv" else contestants.pools
        mode = MODES[group.mode]
        return make(group, mode, self.device, self.arena(mode), usable)

    def _measure(self, group):
        mode = MODES[group.mode]
        set_math(mode)
        usable = self.usable(group.mode)
        try:
            entered = self._contestants(group, usable)
            entered += self._product(group, mode) if ("gemm", "mm", "") in usable else []
        except RuntimeError as error:  # too large for the arena, or for what memory is left beside it
            self._skip(error, group.words())
            self.device.synchronize()
            return
        self._together(entered, share=self.left() / max(1, len(self.waiting)))

    def _product(self, group, mode):
        """The matrix product of a convolution's sizes, unless it was measured before; depthwise ones have none."""
        layer, shape = group.layer.layer, group.layer.shape
        if layer.kind != "conv" or layer.groups == shape[0]:
            return []
        key = *problems.gemm_view(layer, shape, group.batch), group.batch, mode.name
        if key in self._products:
            uses = self._products[key].row["uses"]
            for network, count in contestants.uses(group.layer).items():
                uses[network] = uses.get(network, 0) + count
            return []
        product = contestants.gemm(*key[:3], mode, self.device, self.arena(mode), contestants.uses(group.layer))
        product.row["batch"] = group.batch
        self._products[key] = product
        return [product]

    def _together(self, entered, share=0.0):
        """Time contestants in turns, A B C, C A B, ...; their rows join `rows`, also if something stops this.

        `share`: seconds that this may take; more rounds are run while half of it lasts.
        """
        ready = []
        try:
            for contestant in entered:
                if self.left() <= 0:
                    self.stopped = f"the budget of {self.options.budget:g} s"
                    self._skip("the budget ended within its group", contestant.row["problem"])
                elif self._prepare(contestant):
                    ready.append(contestant)
            least = 3 if self.options.quick else _LEAST_ROUNDS
            rounds, done, begin = least, 0, time.perf_counter()
            while ready and done < rounds:
                turn = done % len(ready)
                for contestant in ready[-turn:] + ready[:-turn]:
                    if contestant.sampler is not None:
                        self._sample(contestant)
                done += 1
                if done == 1:
                    one = time.perf_counter() - begin
                    rounds = least if self.options.quick else max(least, min(_MOST_ROUNDS, int(0.5 * share / one)))
                if self.left() <= 0:
                    break
        finally:
            for contestant in ready:
                if contestant.samples:
                    self._enter(contestant)
                    contestant.sampler.close()
            self.device.release()

    def _prepare(self, contestant):
        """First call, which autotunes, then a sampler. False if torch refuses or memory does not suffice."""
        call, row = contestant.call, contestant.row
        try:
            row["first_call_seconds"] = self.device.once(call)
            contestant.sampler, failure = self.device.sampler(call, contestant.copies, self._sample_seconds)
        except RuntimeError as error:
            self._drop(contestant, error)
            return False
        if failure:
            row["no_graph"] = failure
        return True

    def _sample(self, contestant):
        try:
            contestant.samples.append(contestant.sampler.sample())
        except RuntimeError as error:  # memory: what was free for its results is another's now
            self._drop(contestant, error)

    def _drop(self, contestant, error):
        self._skip(error, f"{contestant.row['variant']}: {contestant.row['problem']}")
        contestant.sampler, contestant.samples = None, []
        self.device.release()
        self.device.synchronize()  # raises again if the GPU itself is lost, which ends the run

    def _enter(self, contestant):
        row, samples, sampler = contestant.row, contestant.samples, contestant.sampler
        row["seconds"] = statistics.median(samples)
        row["spread"] = measure.spread(samples)
        row["rounds"] = len(samples)
        row["calls_per_sample"], row["timer"] = sampler.calls, sampler.timer
        row["at"] = self.elapsed()
        self.rows.append(row)

    def _skip(self, reason, what):
        words = reason if isinstance(reason, str) else _first_line(reason)
        self.skipped.setdefault(words, []).append(what)

    # Results

    def folder(self):
        if self.options.out:
            return pathlib.Path(self.options.out)
        slug = re.sub(r"[^a-z0-9]+", "-", self.device.name.lower()).strip("-")
        top = pathlib.Path(__file__).resolve().parent.parent
        dry = self.options.quick or self.device.kind == "cpu"  # results are kept in git, and these are none
        return top.parent / "build" / "gpu-baseline" / slug if dry else top / "results" / slug

    def write(self):
        summary.write(self, self.folder())
        self._written = time.perf_counter()

    def method(self):
        """How the numbers came about, in words."""
        return {
            "timer": self.device.timing,
            "seconds": "median over rounds of seconds per call; spread: half the quartile distance over the median",
            "order": "everything measured of one layer at one batch in one mode takes turns, round by round",
            "cache": "cold: calls rotate among copies of their operands, together over twice the L2 cache, and results "
            "stay alive for a rotation; rows with cold=false had too little memory or too small operands for that",
            "operands": "normal random numbers",
            "cudnn": "benchmark=True, its limit of algorithms "
            f"{torch.backends.cudnn.benchmark_limit}; first_call_seconds holds what autotuning took",
            "of_copy": "minimum_bytes per second over the best copy's bytes read and written per second",
            "of_gemm": "FLOP/s over the best matrix product's in the same mode on this machine",
            "of_roofline": "the least time of these FLOPs and bytes at those two rates, over the time measured",
            "gemm": "a (m, k) times b (n, k) transposed; m = n p q, n = k, k = c r s of one group",
            "math_interface": sorted({check["interface"] for check in self.checks.values()}),
            "cudnn_deterministic": torch.backends.cudnn.deterministic,
        }


def _first_line(error):
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def parser():
    top = argparse.ArgumentParser(prog="python -m benchmarks.gpu.baseline", description=__doc__)
    option = top.add_argument

    def names(known):
        def parse(word):
            chosen = [name for name in word.split(",") if name]
            unknown = [name for name in chosen if name not in known]
            if unknown or not chosen:
                raise argparse.ArgumentTypeError(f"'{word}' is not a list of {', '.join(known)}")
            return chosen

        return parse

    def batches(word):
        return [int(number) for number in word.split(",")]

    def seconds(word):
        if not 0 < float(word) < float("inf"):
            raise argparse.ArgumentTypeError(f"{word} is not a positive number of seconds")
        return float(word)

    option("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a dry run of the same code (use --quick)")
    option("--budget", type=seconds, default=270.0, metavar="SECONDS", help="for the whole run (default 270)")
    option("--out", metavar="FOLDER", help="for baseline.json, .md (default benchmarks/results/<gpu>, or build/)")
    option("--quick", action="store_true", help="every size cut down, a few layers each: a dry run, no benchmark")
    option("--networks", type=names(layers.NETWORKS), default=list(layers.NETWORKS), metavar="NAME,...")
    option("--modes", type=names(MODES), default=list(MODES), metavar="NAME,...", help=", ".join(MODES))
    option("--batches", type=batches, metavar="N,...", help="only these of 1, 32, 128")
    return top


def main(argv=None):
    """Run, print, write. Returns the exit status: 0; 1 without a GPU, with a lost one or if a check failed; 130 after
    Ctrl-C."""
    began = time.perf_counter()
    options = parser().parse_args(argv)
    try:
        device = open_device(options.device)
    except RuntimeError as missing:
        print(f"gpu-baseline: {missing}; `--device cpu --quick` runs the same code dry", file=sys.stderr)
        return 1
    if device.kind == "cpu":
        torch.set_num_threads(1)  # operators of microseconds: waiting for a second thread takes milliseconds
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # a job's time limit ends like Ctrl-C
    try:
        baseline = Baseline(options, device, began)
        baseline.run()
        summary.show(baseline)
    finally:
        signal.signal(signal.SIGTERM, before)
    if baseline.stopped == "an interrupt":
        return 130
    return 1 if baseline.broken or any(check["failed"] for check in baseline.checks.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
