"""The README's tables and a recording's page are what the results say."""

import json
import math
import pathlib
import re

import pytest
from benchmarks import machine, page, readme, recording_page, summary, writers
from benchmarks.__main__ import main

ROOT = pathlib.Path(readme.__file__).parents[1]
TEXT = "# project\n\nwords\n\n## Measured\n\nby hand\n\n## Limits\n\nmore\n"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A file of results as `record` writes it, of a run of LeNet-5 in both passes."""
    folder = tmp_path_factory.mktemp("recorded")
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "PEAK_SECONDS", 0.01)
        patch.setattr(machine, "ieee", lambda: None)
        for direction in ("fwd", "train"):
            words = ["run", "lenet5", "--threads", "1", "--min-time", "0.001", "--runs", "3", "--pass", direction]
            assert main([*words, "--json", str(folder / f"{direction}.json")]) == 0
            found[direction] = writers.read_json(folder / f"{direction}.json")
    data = found["fwd"]
    for key in ("rows", "whole_network"):
        data[key] += found["train"][key]
    for row in data["rows"]:
        row["layers"] = [["lenet5", row["name"]], ["course", f"{row['name']} <too>"]]
    data["noise"] = []
    data["recording"] = {"missing": [], "seconds": 1.0, "settings": {}}
    path = folder / "machine" / "results.json"
    path.parent.mkdir()
    path.write_text(json.dumps(data))
    return path


def load(recorded):
    return json.loads(recorded.read_text())


def written(recorded, text=TEXT):
    """The README beside the folder of the results, after the command."""
    file = recorded.parents[1] / "README.md"
    file.write_text(text)
    assert main(["readme", str(recorded), "--readme", str(file)]) == 0
    return file


def check(recorded, file):
    return main(["readme", str(recorded), "--readme", str(file), "--check"])


def test_the_tables_stand_in_their_section_and_the_rest_is_left_alone(recorded, capsys):
    file = written(recorded)
    text = file.read_text()
    head, tail = TEXT.split("## Measured\n")
    assert text.startswith(f"{head}## Measured\n\n<!-- benchmarks:begin machine/results.json;")
    assert text.endswith(f"<!-- benchmarks:end -->\n{tail}")
    assert "![roofline](machine/roofline.png)" in text
    assert (recorded.parent / "roofline.png").read_bytes().startswith(b"\x89PNG")
    facts = load(recorded)["machine"]
    assert facts["cpu"] in text.replace("\n", " ")
    assert facts["git"] is None or facts["git"]["commit"][:10] in text
    assert len(text.split("benchmarks:begin")[1].splitlines()) < 40
    assert check(recorded, file) == 0
    assert main(["readme", str(recorded), "--readme", str(file)]) == 0
    assert file.read_text() == text
    assert "as it was" in capsys.readouterr().out


def test_the_numbers_are_those_of_the_file(recorded):
    data = load(recorded)
    ratios = [row["speed"]["ratio"]["median"] for row in data["rows"] if row["kind"] == "avg" and row["pass"] == "fwd"]
    assert len(ratios) == 2
    mean = math.sqrt(ratios[0] * ratios[1])
    cell = f"{mean:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    text = written(recorded).read_text()
    (line,) = (line for line in text.splitlines() if line.startswith("| average pools (2) |"))
    assert cell in line
    (line,) = (line for line in text.splitlines() if line.startswith("| LeNet-5 |"))
    whole = [one["ratio"]["fastconv auto"]["median"] for one in data["whole_network"]]
    for ratio in whole:
        assert f"| {ratio:.2f} (" in line
    assert "peak memory" in text
    for row in data["rows"]:
        if row["speed"]["ratio"]:
            row["speed"]["ratio"]["median"] *= 2
    assert f"{2 * mean:.2f} (" in readme.replaced(TEXT, data, pathlib.Path("machine/results.json"))


def test_check_fails_for_another_text_and_for_a_missing_picture(recorded, capsys):
    file = written(recorded)
    text = file.read_text()
    file.write_text(text.replace("| average pools (2) |", "| average pools (3) |"))
    assert check(recorded, file) == 1
    assert "README.md is not what" in capsys.readouterr().err
    file.write_text(text)
    assert check(recorded, file) == 0
    (recorded.parent / "roofline.png").unlink()
    assert check(recorded, file) == 1


@pytest.mark.parametrize(
    "text, expected",
    [
        ("# project\n", "no section '## Measured'"),
        (TEXT + "<!-- benchmarks:begin a; b -->\n", "once each"),
        (TEXT + 2 * "<!-- benchmarks:begin a; b -->\n<!-- benchmarks:end -->\n", "once each"),
    ],
)
def test_a_readme_without_a_place_is_refused(recorded, tmp_path, capsys, text, expected):
    file = tmp_path / "README.md"
    file.write_text(text)
    with pytest.raises(SystemExit) as left:
        main(["readme", str(recorded), "--readme", str(file)])
    assert left.value.code == 2
    assert expected in capsys.readouterr().err
    assert file.read_text() == text


def test_the_projects_readme_shows_the_committed_results():
    """Without results there are no tables, without tables no results."""
    files = sorted((ROOT / "benchmarks" / "results").glob("*/results.json"))
    shown = re.findall(r"<!-- benchmarks:begin ([^;]*);", (ROOT / "README.md").read_text())
    assert len(shown) == min(1, len(files))
    for path in shown:
        assert ROOT / path in files
        assert main(["readme", str(ROOT / path), "--readme", str(ROOT / "README.md"), "--check"]) == 0


def test_means_are_geometric_and_kinds_are_told_apart():
    found = summary.mean([1.0, 4.0, None])
    assert (found.mean, found.low, found.high, found.count) == (2.0, 1.0, 4.0, 2)
    assert summary.mean([None]) is None
    conv = {"kind": "conv", "c": 8, "groups": 1, "r": 3, "s": 3, "stride_h": 1, "stride_w": 1}
    kinds = {
        "3x3 convolutions, stride 1": {}, "other convolutions": {"stride_h": 2}, "1x1 convolutions": {"r": 1, "s": 1},
        "depthwise convolutions": {"groups": 8}, "transposed convolutions": {"kind": "conv_transpose"},
        "max-pools": {"kind": "max"}, "average pools": {"kind": "avg"}, "LP pools": {"kind": "lp"},
    }  # fmt: skip
    for name, changes in kinds.items():
        fields = {**conv, **changes}
        assert summary.group_of({"kind": fields["kind"], "fields": fields}) == name
    assert summary.group_of({"kind": "linear", "fields": {}}) is None
    assert set(kinds) == set(summary.GROUPS)


def test_the_page_of_a_recording_has_means_and_every_layer(recorded, tmp_path):
    assert main(["report", str(recorded), "--out", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"index.html", "ratios.png", "roofline.png"}
    text = (tmp_path / "index.html").read_text()
    for words in ("Kinds of layers", "average pools", "Whole networks", "Memory", "LeNet-5, forward, batch 1",
                  "LeNet-5, training, batch 1", "C1 &lt;too&gt;"):  # fmt: skip
        assert words in text
    assert "<too>" not in text
    assert text.count("<details>") == 4  # two networks, two passes
    row = load(recorded)["rows"][0]
    ratio = summary.ratio_within(row, "nhwc")
    assert f"{ratio:.2f}</td>" in text
    samples = row["samples"]
    pairs = sorted(a / b for a, b in zip(samples["torch"]["nhwc"], samples["fastconv"]["nhwc"], strict=True))
    assert pairs[0] <= ratio <= pairs[-1]


def test_the_page_names_what_is_missing_and_what_failed(recorded):
    data = load(recorded)
    data["recording"]["missing"] = ["tuned-fwd-n8-<vgg16>-whole"]
    data["rows"][0] |= {"check": "failed: nchw, output: error 1 exceeds <2", "speed": None, "samples": {}}
    text = page.page(data, [])
    assert "1 parts have not been measured yet: tuned-fwd-n8-&lt;vgg16&gt;-whole" in text
    assert "failed: nchw, output: error 1 exceeds &lt;2" in text
    assert [recording_page.shade(ratio) for ratio in (0.5, 0.9, 1.0, 1.3, 2.5)] == ["s0", "s1", "s2", "s3", "s4"]
