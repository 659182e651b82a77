"""The whole network, end to end: fastconv.convert's model beside PyTorch's, verified, then timed in turns."""

import contextlib
import time

import fastconv
import torch

from . import contestants as c
from . import formulas as f
from . import machine, measure, models, verify


class WholeNetwork:
    """Results of one number of threads. samples, check: side -> layout -> seconds, verify.compare_networks()'s dict.

    fastconv's sides are called "fastconv <algorithm asked for>". peak_bytes: side -> layout -> the most memory of a
    call, parameters and input included; filter_bytes: transformed filters that fastconv then keeps, in NCHW.
    """

    def __init__(self, network, batch, direction, algorithms, threads, compiled):
        self.network, self.batch, self.algorithms, self.threads = network, batch, algorithms, threads
        self.training, self._compiled = direction == "train", compiled and direction != "train"
        self.samples, self.check, self.saved_bytes = {}, {}, {}
        self.peak_bytes, self.filter_bytes = {}, None

    def run(self, model, x, how, stage=lambda words: None, tick=None):
        """Verify and measure `model` (models.build's) on the input `x`; `how`: trial.How."""
        stage("verifying the whole network")
        contestants, samples, known = {}, {}, {}
        usual = self._usual_difference(model, x) if self.training else None
        for layout in models.LAYOUTS:
            image = x.clone(memory_format=models.LAYOUTS[layout])
            for side, step in self._sides(model, image, layout, how.memory(self.threads)):
                if side == "torch":
                    expected = self._results(step)
                elif not self._checked(side, layout, step, expected, usual):
                    continue
                begin = time.perf_counter()
                self._results(step)  # the second call keeps transformed filters: the rounds that count begin after it
                known[side, layout] = time.perf_counter() - begin
                if how.memory(self.threads):
                    self._look_at_memory(side, layout, step, model, x)
                contestants[side, layout], samples[side, layout] = step, []
                self.samples.setdefault(side, {})[layout] = samples[side, layout]
        stage("measuring the whole network")
        with torch.set_grad_enabled(self.training):
            measure.interleaved(contestants, samples, how.runs, 3 * how.seconds, tick, how.most_seconds, known)

    def _look_at_memory(self, side, layout, step, model, x):
        with torch.set_grad_enabled(self.training):
            step()  # from the second call on, transformed filters are kept
            extra = machine.peak_extra_bytes(step)
        held = sum(t.numel() * t.element_size() for t in (*model.parameters(), x))
        kept = fastconv.filter_cache_info().bytes if side.startswith("fastconv") else 0
        self.peak_bytes.setdefault(side, {})[layout] = None if extra is None else held + kept + extra
        if side == "fastconv auto" and layout == "nchw":
            self.filter_bytes = kept

    def _sides(self, model, image, layout, memory):
        """(name, step) of every side, PyTorch's first. Linear layers, most of the memory, are shared."""
        nets = {"torch": models.twin(model, layout)}
        yield "torch", self._step(nets["torch"], image)
        if self._compiled:
            yield "torch.compile", self._compiled_step(models.twin(model, layout), image)
        fastconv.clear_filter_cache()
        nets["fastconv"] = fastconv.convert(models.twin(model, layout), inplace=True, fallback="error")
        for asked in self.algorithms:
            yield f"fastconv {asked}", self._step(nets["fastconv"], image, asked)
        if layout == "nchw" and memory:
            for side, net in nets.items():
                self.saved_bytes[side] = c.saved_bytes(lambda net=net: net(image), list(net.parameters()))

    def _step(self, net, image, asked="auto"):
        """A function that returns [output] or, training, also the gradients of models.loss."""
        net.train(self.training)
        parameters = list(net.parameters())
        labels = torch.zeros(len(image), dtype=torch.long)
        context = contextlib.nullcontext if asked == "auto" else lambda: fastconv.algorithm(asked)

        def step():
            with context():
                y = net(image)
                if not self.training:
                    return [y]
                first = y[0] if isinstance(y, tuple) else y  # auxiliary heads come after the output
                return [first, *torch.autograd.grad(models.loss(y, labels), parameters)]

        return step

    def _compiled_step(self, net, image):
        import torch._inductor.config as inductor

        torch._dynamo.reset()
        net = torch.compile(net, dynamic=False)
        with torch.no_grad(), inductor.patch(freezing=True):
            net(image)
        return lambda: [net(image)]

    def _results(self, step):
        with torch.set_grad_enabled(self.training):
            return step()

    def _usual_difference(self, model, x):
        """By how much PyTorch's gradients differ between its layouts."""
        found = [
            self._results(self._step(models.twin(model, layout), x.clone(memory_format=format)))
            for layout, format in models.LAYOUTS.items()
        ]
        return verify.gradient_difference(*found)

    def _checked(self, side, layout, step, expected, usual):
        try:
            check = verify.compare_networks(self._results(step), expected, usual)
        except RuntimeError as refusal:
            if not c.is_refusal(refusal):
                raise
            check = {"ok": False, "refused": str(refusal)}
        self.check.setdefault(side, {})[layout] = check
        return check["ok"]

    def failed(self):
        checks = [check for layouts in self.check.values() for check in layouts.values()]
        return any(not check["ok"] and "refused" not in check for check in checks)

    def best(self, side):
        """(layout, samples) of the side's faster layout; None if it was not timed."""
        layouts = self.samples.get(side, {})
        if not layouts or not all(layouts.values()):
            return None
        layout = min(layouts, key=lambda name: measure.summary(layouts[name])["median"])
        return layout, layouts[layout]

    def as_json(self):
        best = {side: self.best(side) for side in self.samples if self.best(side)}
        speed = {
            side: {"layout": layout, **measure.summary(samples), "spread": measure.spread(samples)}
            for side, (layout, samples) in best.items()
        }
        peers = [side for side in speed if not side.startswith("fastconv")]
        best_peer = min(peers, key=lambda side: speed[side]["median"], default=None)
        ratios = {
            side: measure.ratio(best[best_peer][1], best[side][1]) for side in speed if best_peer and side not in peers
        }
        return {
            "network": self.network.name,
            "title": self.network.title,
            "batch": self.batch,
            "pass": "train" if self.training else "fwd",
            "threads": self.threads,
            "malloc": machine.malloc(),
            "check": self.check,
            "speed": speed,
            "best_peer": best_peer,
            "ratio": ratios,
            "samples": self.samples,
            "saved_bytes": self.saved_bytes,
            "peak_bytes": self.peak_bytes,
            "filter_bytes": self.filter_bytes,
            "parameters": self.network.parameters(),
            "flops": sum(layer.flops(before, self.batch) for layer, before, _ in self.network.walk()),
            "activation_bytes": self.network.activations() * self.batch * f.FLOAT,
        }
