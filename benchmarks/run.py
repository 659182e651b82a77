"""`python -m benchmarks run`: verify every layer, then measure every layer and the whole network, then report."""

import contextlib
import json
import pathlib

import fastconv
import torch

from . import files, inputs, machine, measure, models, networks, peers, report, verify
from .progress import progress
from .rows import row_of

SCHEMA = 1


class BadArgument(Exception):
    """A command line that cannot be run; the text says why."""


class Bench:
    """One run. What was measured stays in `rows` and `whole`, whatever interrupts the rest."""

    def __init__(self, arguments):
        self.arguments = arguments
        self.network = networks.NETWORKS[arguments.network]
        self.training = arguments.direction == "train"
        self.image = arguments.image or self.network.image
        self.rows, self.whole = [], {}
        self.facts = self.peaks = self.peaks_after = None
        self.interrupted = False
        self._work = []  # (rows of a layer, its operands)

    def check_arguments(self):
        known = peers.algorithms()
        for name in self.arguments.algorithms:
            if name not in known:
                near = " or ".join(networks.nearest(name, known))
                raise BadArgument(f"unknown algorithm '{name}'; did you mean {near}?")
        layers = [layer.name for layer in self.network.layers]
        for name in self.arguments.layers or ():
            if name not in layers:
                raise BadArgument(f"{self.network.name} has no layer '{name}'; it has {', '.join(layers)}")
        if self.arguments.json and not pathlib.Path(self.arguments.json).resolve().parent.is_dir():
            raise BadArgument(f"the folder of {self.arguments.json} does not exist")

    def run(self):
        if self.arguments.threads:
            torch.set_num_threads(self.arguments.threads)
        fastconv.set_accuracy(self.arguments.accuracy)
        self.facts = machine.facts(fastconv, fastconv.ops.extension())
        with contextlib.suppress(KeyboardInterrupt), progress() as bar:
            self.interrupted = True
            bar.stage("measuring the machine")
            self.peaks = machine.peaks()
            bar.stage("preparing the network")
            model, x = self._prepare()
            self._verify_layers(bar)
            self._measure_layers(bar)
            if not self.arguments.layers:
                self._whole_network(model, x, bar)
            self.peaks_after = machine.peaks()
            self.interrupted = False

    def _prepare(self):
        network, arguments = self.network, self.arguments
        model = models.build(network, arguments.seed)
        image = x = inputs.load(self.image, network.input_shape, arguments.batch, arguments.seed)
        for number, (layer, before, after) in enumerate(network.walk()):
            module = getattr(model, layer.name) if layer.kind in ("conv", "linear") else None
            if not arguments.layers or layer.name in arguments.layers:
                asked = arguments.algorithms if layer.kind == "conv" else ["auto"]
                rows = [row_of(layer, before, after, arguments.batch, self.training, number == 0, a) for a in asked]
                operands = verify.Operands(layer, x, module, self.training, number == 0, arguments.seed)
                self._work.append((rows, operands, before))
                self.rows += rows
            with torch.no_grad():
                x = peers.torch_layer(layer, x, *((module.weight, module.bias) if module else ()))
        return model, image

    def _verify_layers(self, bar):
        for done, (rows, operands, before) in enumerate(self._work):
            layer = operands.layer
            bar.stage(f"verifying {layer.name}")
            bar.to(0.2 * done / len(self._work))
            reference = verify.reference(operands)
            function = peers.call("torch", layer)
            torchs = {
                layout: verify.errors(operands, function, layout, reference) for layout in models.layouts_of(layer)
            }
            for row in rows:
                row.errors["torch"] = torchs
                self._verify_row(row, operands, before, reference)

    def _verify_row(self, row, operands, before, reference):
        layer = operands.layer
        row.saved_bytes["torch"] = self._saved("torch", layer, operands)
        if layer.kind == "linear":
            row.check = "ok"  # torch's own layer on both sides
            return
        ours = row.errors["fastconv"] = {}
        function = peers.call("fastconv", layer, row.asked)
        try:
            for layout in models.LAYOUTS:
                first = layer is self.network.layers[0]
                row.choices[layout] = peers.choices(
                    layer, before, self.arguments.batch, layout, self.training, first, row.asked
                )
                ours[layout] = verify.errors(operands, function, layout, reference)
        except RuntimeError as refusal:
            if not str(refusal).startswith("fastconv: no algorithm"):
                raise
            row.check = f"refused: {refusal}"
            return
        row.saved_bytes["fastconv"] = self._saved("fastconv", layer, operands, row.asked)
        names, accuracy = operands.names(), self.arguments.accuracy
        complaints = (
            f"{layout}, {words}"
            for layout in models.LAYOUTS
            if (words := verify.complaint(names, ours[layout], row.errors["torch"][layout], accuracy))
        )
        wrong = next(complaints, None)
        row.check = f"failed: {wrong}" if wrong else "ok"

    def _saved(self, side, layer, operands, asked="auto"):
        x, weight, bias, _ = operands.of("nchw")
        x = x.detach().requires_grad_(layer is not self.network.layers[0])
        parameters = [t.detach().requires_grad_() for t in (weight, bias) if t is not None]
        function = peers.call(side, layer, asked)
        padded = [*parameters, None, None][:2]
        return peers.saved_bytes(lambda: function(x, *padded), parameters)

    def _measure_layers(self, bar):
        for done, (rows, operands, _) in enumerate(self._work):
            layer = operands.layer
            contestants, samples = {}, {}
            for layout in models.layouts_of(layer):
                self._enter(contestants, samples, rows, "torch", layout, operands)
                for row in rows:
                    if row.kind != "linear" and row.passed():
                        self._enter(contestants, samples, [row], "fastconv", layout, operands, row.asked)
            bar.stage(f"measuring {layer.name}")
            with torch.set_grad_enabled(self.training):
                measure.interleaved(
                    contestants,
                    samples,
                    self.arguments.runs,
                    self.arguments.min_time,
                    tick=lambda part, done=done: bar.to(0.2 + 0.65 * (done + part) / len(self._work)),
                )

    @staticmethod
    def _enter(contestants, samples, rows, side, layout, operands, asked="auto"):
        """Add a contestant; its samples go into each of `rows`."""
        function = peers.call(side, operands.layer, asked)
        tensors = operands.of(layout)
        name = (side, layout, asked)
        contestants[name] = lambda: peers.forward_and_gradients(function, *tensors)
        samples[name] = []
        for row in rows:
            row.samples.setdefault(side, {})[layout] = samples[name]

    def _whole_network(self, model, x, bar):
        whole = self.whole
        bar.stage("verifying the whole network")
        whole.update(samples={}, check={}, saved_bytes={}, parameters=self.network.parameters())
        contestants, samples = {}, {}
        for layout in models.LAYOUTS:
            image = x.clone(memory_format=models.LAYOUTS[layout])
            pair = {"torch": models.twin(model, layout), "fastconv": peers.converted(models.twin(model, layout))}
            expected = self._results(self._step(pair["torch"], image, "auto"))
            for side, net in pair.items():
                for asked in ["auto"] if side == "torch" else self.arguments.algorithms:
                    step = self._step(net, image, asked)
                    if side == "fastconv":
                        check = self._check_network(step, expected)
                        whole["check"].setdefault(asked, {})[layout] = check
                        if not check.get("ok"):
                            continue
                    name, label = (side, layout, asked), side if side == "torch" else f"fastconv {asked}"
                    contestants[name], samples[name] = step, []
                    whole["samples"].setdefault(label, {})[layout] = samples[name]
                if layout == "nchw":
                    forward = lambda net=net, image=image: net(image)  # noqa: E731
                    whole["saved_bytes"][side] = peers.saved_bytes(forward, list(net.parameters()))
        bar.stage("measuring the whole network")
        with torch.set_grad_enabled(self.training):
            measure.interleaved(
                contestants,
                samples,
                self.arguments.runs,
                3 * self.arguments.min_time,
                tick=lambda part: bar.to(0.85 + 0.15 * part),
            )

    def _step(self, net, image, asked):
        """A function that returns [output] or, training, also the gradients of its cross entropy (or sum)."""
        parameters = list(net.parameters())
        labels = torch.zeros(len(image), dtype=torch.long)
        context = contextlib.nullcontext if asked == "auto" else lambda: peers.forced(asked)

        def step():
            with context():
                y = net(image)
                if not self.training:
                    return [y]
                loss = torch.nn.functional.cross_entropy(y, labels) if y.dim() == 2 else y.sum()
                return [y, *torch.autograd.grad(loss, parameters)]

        return step

    def _results(self, step):
        with torch.set_grad_enabled(self.training):
            return step()

    def _check_network(self, step, expected):
        try:
            return verify.compare_networks(self._results(step), expected)
        except RuntimeError as refusal:
            if not str(refusal).startswith("fastconv: no algorithm"):
                raise
            return {"ok": False, "refused": str(refusal)}

    def failed(self):
        networks_checked = [c for layouts in self.whole.get("check", {}).values() for c in layouts.values()]
        return any(row.failed() for row in self.rows) or any(
            not c["ok"] and "refused" not in c for c in networks_checked
        )

    def noise(self):
        """Reasons not to trust the times; None if nobody looked."""
        if not self.peaks:
            return None
        return machine.noise(self.peaks, self.peaks_after, [row.spread() for row in self.rows if row.measured()])

    def as_json(self):
        arguments = self.arguments
        return {
            "schema": SCHEMA,
            "kind": "fastconv network benchmark",
            "network": self.network.name,
            "source": self.network.source,
            "image": self.image,
            "batch": arguments.batch,
            "pass": arguments.direction,
            "weights": f"random, seed {arguments.seed}",
            "seed": arguments.seed,
            "dtype": "float32",
            "interrupted": self.interrupted,
            "machine": self.facts,
            "peaks": self.peaks,
            "peaks_after": self.peaks_after,
            "noise": self.noise(),
            "peak_rss_bytes": machine.peak_rss(),
            "rows": [row.as_json(self.peaks) for row in self.rows],
            "whole_network": report.whole_as_json(self),
        }


def write_json(path, data):
    files.replace(path, json.dumps(data, indent=1, allow_nan=False) + "\n")


def run(arguments):
    """Run, print, write. Returns the exit status: 1 if a check failed, 130 after Ctrl-C, else 0."""
    bench = Bench(arguments)
    bench.check_arguments()
    bench.run()
    report.show(bench)
    if arguments.json:
        write_json(arguments.json, report.finite(bench.as_json()))
    return 1 if bench.failed() else 130 if bench.interrupted else 0
