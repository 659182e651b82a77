"""Lists of real-world problems, by name: oneDNN's, DeepBench's and MIOpen's (NOTICE.txt says whose they are).

A CSV of problems has a header with `n c h w r s`, for convolutions `k`, and as many of `stride_h stride_w pad_t pad_l
pad_b pad_r dil_h dil_w groups out_h out_w bias relu activation name source kind ceil nopad norm` as differ from their
defaults. A file is of convolutions if it has `k` and `out_h`, `out_w` are those of a convolution; a `kind` (conv,
conv_transpose, max, avg, lp, adaptive_max, adaptive_avg) settles it. c, h, w are the layer's input, k its filters, of a
transposed convolution too, whose `out_h`, `out_w` tell the output's padding; adaptive pools have no r, s.
"""

import csv
import functools
import pathlib
from dataclasses import dataclass

from .. import geometry
from ..formulas import transposed_size, window_positions
from ..nearest import did_you_mean

FOLDER = pathlib.Path(__file__).parent
_FILES = {"conv2d_shapes.csv": "conv", "pool2d_shapes.csv": "pool"}
_KINDS = ("conv", "conv_transpose", "max", "avg", "lp", "adaptive_max", "adaptive_avg")
_NEEDED = ("n", "c", "h", "w", "r", "s")


class BadSuite(ValueError):
    """A file that is no list of problems; the text names the line."""


@dataclass(frozen=True)
class Line:
    """One problem of a list: its name there, and the fields of the forward problem."""

    name: str
    source: str
    fields: dict


def suite_name(source):
    """'oneDNN/shapes_vgg_19' -> 'onednn:shapes_vgg_19', 'MIOpen/VGG16_v1_FP32_BS4.txt' -> 'miopen:vgg16_v1_fp32_bs4'"""
    return source.removesuffix(".txt").replace("/", ":", 1).lower()


@functools.cache
def _shipped():
    """{suite: its lines, conv then pool}"""
    found = {}
    for file, kind in _FILES.items():
        for line in read(FOLDER / file, kind):
            found.setdefault(suite_name(line.source), []).append(line)
    return found


def names():
    """{suite: (convolutions, pools)}"""
    counts = {}
    for name, lines in _shipped().items():
        convolutions = sum(line.fields["kind"] == "conv" for line in lines)
        counts[name] = (convolutions, len(lines) - convolutions)
    return counts


def load(name):
    """The different problems of a suite, in its order. `name` is of names()."""
    return different(_shipped()[name])


def different(lines):
    """Without repetitions of a problem; the first name stays."""
    found = {}
    for line in lines:
        found.setdefault(tuple(sorted(line.fields.items())), line)
    return list(found.values())


def read(path, kind=None):
    """The lines of a CSV file; `kind` (conv, pool) is for files without such a column.

    Raises:
        BadSuite: a column is missing, or a value is no number, with the number of the line.
        OSError: the file cannot be read.
    """
    with open(path, newline="") as file:
        rows = csv.DictReader(file)
        needed = _NEEDED[:4] if "kind" in (rows.fieldnames or ()) else _NEEDED
        missing = [name for name in needed if name not in (rows.fieldnames or ())]
        if missing:
            raise BadSuite(f"{path} has no column {', '.join(missing)} in its first line")
        default = kind or ("conv" if "k" in rows.fieldnames else "pool")
        lines = []
        for number, row in enumerate(rows, 2):
            try:
                lines.append(_line(row, default, pathlib.Path(path).name))
            except (ValueError, TypeError) as bad:
                raise BadSuite(f"{path}, line {number}: {bad}") from None
        return lines


def _line(row, default, file):
    name = (row.get("name") or "").strip()
    kind = (row.get("kind") or "").strip().lower() or (default if default == "conv" else _pool_kind(name))
    if kind not in _KINDS:
        raise ValueError(f"kind is '{kind}'; {did_you_mean(kind, _KINDS)}")

    def number(key, otherwise=None):
        text = (row.get(key) or "").strip()
        if not text and otherwise is not None:
            return otherwise
        try:
            return int(text)
        except ValueError:
            raise ValueError(f"{key} is '{text}', expected a whole number") from None

    def flag(key):
        return bool(number(key, 0))

    source = (row.get("source") or "").strip() or file
    if kind.startswith("adaptive_"):
        fields = {"kind": kind.removeprefix("adaptive_"), **{key: number(key) for key in "nchw"}, **_ADAPTIVE}
        return Line(name, source, {**fields, "p": number("out_h"), "q": number("out_w"), **_largest(fields, number)})
    fields = {"kind": kind, **{key: number(key) for key in _NEEDED}}
    pads = {"pad_top": number("pad_t", 0), "pad_left": number("pad_l", 0)}
    high = {"pad_bottom": number("pad_b", pads["pad_top"]), "pad_right": number("pad_r", pads["pad_left"])}
    fields |= {"stride_h": number("stride_h", 1), "stride_w": number("stride_w", 1), **pads}
    fields |= {"dilation_h": number("dil_h", 1), "dilation_w": number("dil_w", 1)}
    if kind in geometry.CONVOLUTIONS:
        fields |= {"k": number("k"), "groups": number("groups", 1), **high, "bias": flag("bias")}
        if flag("relu") and (row.get("activation") or "").strip() not in ("", "relu"):
            raise ValueError("relu is 1, but the activation is another one")
        word = "relu" if flag("relu") else (row.get("activation") or "").strip()
        fields |= geometry.parse_activation(word)
        if kind == "conv_transpose":
            fields = _mirrored(fields, number)
    else:
        fields["ceil_mode"] = flag("ceil") if row.get("ceil") else _rounds_up(fields, number("out_h", 0))
        if kind == "avg":
            fields["count_include_pad"] = not flag("nopad")
        if kind == "lp":
            fields["norm"] = float(number("norm"))
    return Line(name, source, fields)


_ADAPTIVE = {"stride_h": 1, "stride_w": 1, "pad_top": 0, "pad_left": 0, "dilation_h": 1, "dilation_w": 1,
             "ceil_mode": False, "adaptive": True}  # fmt: skip


def _largest(fields, number):
    """r, s: the largest of an adaptive pool's windows along each axis."""

    def along(size, count):
        if count < 1:
            raise ValueError(f"out_h or out_w is {count}, expected at least 1")
        return max(-(-(i + 1) * size // count) - i * size // count for i in range(count))

    return {"r": along(fields["h"], number("out_h")), "s": along(fields["w"], number("out_w"))}


def _mirrored(fields, number):
    """The fields of the convolution whose gradient by the input a transposed convolution is."""
    if fields["activation"] != "none" or not geometry.equal_pads(fields):
        raise ValueError("a transposed convolution has no activation, and equal pads on both sides")
    sizes = {}
    for axis, reach, pad in (("h", fields["r"], fields["pad_top"]), ("w", fields["s"], fields["pad_left"])):
        step, spread = fields[f"stride_{axis}"], fields[f"dilation_{axis}"]
        least = transposed_size(fields[axis], spread * (reach - 1) + 1, step, pad)
        sizes[axis] = number(f"out_{axis}", least)
        if not least <= sizes[axis] < least + step:
            raise ValueError(f"out_{axis} is {sizes[axis]}, expected {least} to {least + step - 1}")
    return {**fields, "c": fields["k"], "k": fields["c"], **sizes}


def _pool_kind(name):
    """The published lists serve every kind of pooling; a name that says average means it."""
    return "avg" if "avg" in name.lower() or "ave" in name.lower() else "max"


def _rounds_up(fields, out_h):
    """Whether `out_h` comes out with ceil_mode only: the lists give the far padding instead."""
    given = fields["h"], fields["r"], max(1, fields["stride_h"]), fields["pad_top"], fields["dilation_h"]
    return out_h not in (0, window_positions(*given)) and out_h == window_positions(*given, ceil_mode=True)
