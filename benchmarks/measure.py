"""Timing: contestants take turns, so that whatever else the machine does hits all of them; medians and quartiles."""

import math
import statistics
import time

_LEAST_SAMPLE = 200e-6  # seconds; shorter calls are repeated within a sample, so that reading the clock costs < 0.1 %
_SLOW = 50e-3  # seconds; a call this long needs no repetition, and its first one has warmed it up
_MOST_ROUNDS = 1000


def interleaved(
    contestants, samples, least_rounds=5, least_seconds=1.0, tick=None, most_seconds=math.inf, known=None
):
    """Time callables in turn, A B C, C A B, B C A, ..., until both `least_rounds` and `least_seconds` are reached, or
    after `most_seconds` and two rounds.

    `samples` {name: list} receives the seconds per call of each full round at its end, so that an interrupt keeps
    what was measured. `tick(fraction)` is called after each round. `known` {name: seconds} of calls just made: those
    of slow ones are not repeated to warm up.
    """
    names = list(contestants)
    known = known or {}
    repeats = {name: 1 if known.get(name, 0) > _SLOW else _repeats(contestants[name]) for name in names}
    start = time.perf_counter()
    for i in range(_MOST_ROUNDS):
        turn = {}
        for name in names[-i % len(names) :] + names[: -i % len(names)]:
            call, times = contestants[name], repeats[name]
            begin = time.perf_counter()
            for _ in range(times):
                call()
            turn[name] = (time.perf_counter() - begin) / times
        for name in names:
            samples[name].append(turn[name])
        gone = time.perf_counter() - start
        done = min(gone / least_seconds, (i + 1) / least_rounds)
        late = gone >= most_seconds and i >= 1
        if tick:
            tick(1.0 if late else min(1.0, done))
        if done >= 1 or late:
            return


def _repeats(call):
    call()  # warm: plans, packed weights, pages
    begin = time.perf_counter()
    call()
    once = time.perf_counter() - begin
    return max(1, min(1000, round(_LEAST_SAMPLE / max(once, 1e-9))))


def summary(samples):
    """{"median", "q1", "q3", "best", "count"} of a list of seconds."""
    q1, median, q3 = quartiles(samples)
    return {"median": median, "q1": q1, "q3": q3, "best": min(samples), "count": len(samples)}


def quartiles(values):
    if len(values) < 2:
        return values[0], values[0], values[0]
    q1, _, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return q1, statistics.median(values), q3


def spread(samples):
    """Half the distance of the quartiles, relative to the median."""
    q1, median, q3 = quartiles(samples)
    return (q3 - q1) / 2 / median


def ratio(numerator, denominator):
    """Median and quartiles of the rounds' own ratios: a slow moment of the machine hits both sides of a round."""
    q1, median, q3 = quartiles([a / b for a, b in zip(numerator, denominator, strict=True)])
    return {"median": median, "q1": q1, "q3": q3}
