"""What comes out of a run: CSV, Markdown, the HTML page and its plots, the comparison of two runs, missing extras."""

import builtins
import copy
import csv
import io
import json

import pytest
from benchmarks import compare, extras, machine, page, plots, table, writers
from benchmarks.__main__ import main

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The folder of one run of LeNet-5 in all formats: out.json, out.csv, out.md."""
    folder = tmp_path_factory.mktemp("run")
    files = [word for kind in ("json", "csv", "md") for word in (f"--{kind}", str(folder / f"out.{kind}"))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "PEAK_SECONDS", 0.01)
        patch.setattr(machine, "ieee", lambda: None)
        words = ["run", "lenet5", "--algorithms", "auto,im2col", "--threads", "1", "--min-time", "0.001", "--runs", "3"]
        assert main([*words, *files]) == 0
    return folder


def load(results):
    return writers.read_json(results / "out.json")


def test_csv_has_one_line_per_row_and_every_figure_of_every_side(results):
    data = load(results)
    with open(results / "out.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(data["rows"])
    for line, row in zip(lines, data["rows"], strict=True):
        assert (line["name"], line["problem"], line["check"]) == (row["name"], row["problem"], "ok")
        assert int(line["flops"]) == row["flops"]
        sides = row["speed"]["sides"]
        assert float(line["torch seconds"]) == sides["torch"]["median"]
        assert line["onnxruntime seconds"] == line["jax layout"] == ""
        if row["kind"] != "linear":
            assert float(line["fastconv roofline"]) == sides["fastconv"]["roofline"]
            assert float(line["ratio_to_best_peer"]) == row["speed"]["ratio"]["median"]
            assert float(line["fastconv error"]) == max(row["errors"]["fastconv"][row["layout"]])
    assert csv.reader(io.StringIO(writers.as_csv(data))).__next__()[:3] == ["name", "source", "problem"]


def test_markdown_is_a_table_that_is_aligned(results):
    lines = (results / "out.md").read_text().splitlines()
    cells = [line for line in lines if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in cells}) == 1
    assert cells[1].startswith("| --- | ")
    assert "| C1 | conv n1c1h32w32" in cells[2]
    t = table.Table("title", [table.Column("a"), table.Column("n", True)])
    t.row(["x|y", ""])
    t.total(["sum", "1"])
    t.note("a note")
    assert t.markdown() == "## title\n\n| a | n |\n| --- | ---: |\n| x\\|y |   |\n| **sum** | **1** |\n\n* a note\n"


def test_the_report_is_one_page_that_needs_nothing_beside_it(results, capsys):
    assert main(["report", str(results / "out.json"), "--out", str(results / "report")]) == 0
    made = {path.name for path in (results / "report").iterdir()}
    assert made == {"index.html", "roofline.png", "ratio.png", "memory.png", "accuracy.png"}
    for name in made - {"index.html"}:
        assert (results / "report" / name).read_bytes().startswith(PNG)
    text = (results / "report" / "index.html").read_text()
    assert text.count("data:image/png;base64,") == 4
    assert 'src="http' not in text
    assert "<script" not in text
    for words in ("LeNet-5", "conv n1c1h32w32", "C3 [im2col]", "Whole network", load(results)["machine"]["cpu"]):
        assert words in text
    assert "index.html" in capsys.readouterr().out


def test_the_page_escapes_what_it_is_given_and_warns(results):
    data = load(results)
    data["title"] = "<b>title</b>"
    data["noise"] = ["other work & more"]
    data["rows"][0]["check"] = "failed: nchw, output: error 1 exceeds <2"
    text = page.page(data, [])
    assert "<b>title" not in text
    assert "other work &amp; more" in text
    assert "C1: failed: nchw, output: error 1 exceeds &lt;2" in text


def many(results, count):
    """A run of `count` rows of different names."""
    data = load(results)
    row = data["rows"][0]
    data["rows"] = [{**copy.deepcopy(row), "name": f"layer{i}"} for i in range(count)]
    return data


@pytest.mark.parametrize("count", [0, 1, 100])
def test_plots_of_nothing_of_one_and_of_many_rows(results, tmp_path, count):
    made = [name for _, name in plots.draw(many(results, count), tmp_path)]
    assert made == (["roofline.png", "ratio.png", "memory.png", "accuracy.png"] if count else [])
    assert all((tmp_path / name).stat().st_size < 400_000 for name in made)


def test_labels_tell_rows_apart(results):
    rows = load(results)["rows"][:1] * 2
    assert plots._labels(rows) == ["C1 (1)", "C1 (2)"]
    other = {**rows[0], "dtype": "bf16", "threads": 2}
    assert plots._labels([rows[0], other]) == ["C1 f32 1T", "C1 bf16 2T"]
    other = {**rows[0], "source": "vgg16", "malloc": "tuned"}
    assert plots._labels([rows[0], other]) == ["lenet5 C1 malloc default", "vgg16 C1 malloc tuned"]


def slower(data, factor, name="C1"):
    """The run with fastconv's times of one layer multiplied."""
    changed = copy.deepcopy(data)
    for row in changed["rows"]:
        if row["name"] == name and row["algorithm_asked"] == "auto":
            for samples in row["samples"]["fastconv"].values():
                samples[:] = [s * factor for s in samples]
            figures = row["speed"]["sides"]["fastconv"]
            figures.update({key: figures[key] * factor for key in ("median", "q1", "q3", "best")})
    return changed


def steady(data):
    """The run with samples that do not vary."""
    data = copy.deepcopy(data)
    for row in data["rows"]:
        for layouts in row["samples"].values():
            for samples in layouts.values():
                samples[:] = [samples[0]] * len(samples)
        for figures in row["speed"]["sides"].values():
            figures.update(dict.fromkeys(("median", "q1", "q3", "best"), row["samples"]["torch"]["nchw"][0]))
    return data


def run_compare(tmp_path, old, new, *words):
    for name, data in (("old", old), ("new", new)):
        (tmp_path / f"{name}.json").write_text(json.dumps(data))
    return main(["compare", str(tmp_path / "old.json"), str(tmp_path / "new.json"), *words])


@pytest.mark.parametrize("by", ["ratio", "latency"])
@pytest.mark.parametrize("factor, limit, status", [(1.0, "5", 0), (1.10, "5", 1), (1.04, "5", 0), (0.5, "5", 0)])
def test_compare_fails_above_its_limit(results, tmp_path, capsys, by, factor, limit, status):
    old = steady(load(results))
    assert run_compare(tmp_path, old, slower(old, factor), "--fail-above", limit, "--by", by) == status
    printed = capsys.readouterr().out
    assert ("slower: C1\n" in printed) == (status == 1)
    assert f"{factor - 1:+.1%}" in printed
    assert "C5" not in printed  # a linear layer is torch's on both sides


def test_compare_does_not_take_noise_for_a_regression(results):
    data = load(results)
    row = next(row for row in data["rows"] if row["name"] == "C1")
    for side, times in (("fastconv", [1.0, 1.0, 2.0, 3.0, 3.0]), ("torch", [1.0] * 5)):
        for layout in row["samples"][side]:
            row["samples"][side][layout] = list(times)
    changed = slower({"rows": [row]}, 1.2)["rows"]
    (change,) = compare.find_changes([row], changed)
    assert change["change"] == pytest.approx(0.2)
    assert not compare.regressed(change, 0.05)


def test_compare_names_rows_that_fail_now_or_are_missing(results, tmp_path, capsys):
    old = load(results)
    new = copy.deepcopy(old)
    broken = new["rows"][0]
    broken.update(check="failed: nchw, output: error 1 exceeds 0", speed=None, samples={})
    gone = new["rows"].pop(2)
    new["machine"]["cpu"] = "another"
    assert run_compare(tmp_path, old, new) == 1
    printed = capsys.readouterr().out
    assert "FAILED, measured before: C1" in printed
    assert "only in the old run" in printed
    assert gone["name"] in printed
    assert "different cpu" in printed


@pytest.mark.parametrize(
    "text, expected",
    [
        ("{", "is not JSON"),
        ("[1]", "is not a result of"),
        ('{"kind": "fastconv benchmark", "schema": 1}', "is of schema 1, this version reads schema 3"),
    ],
)
def test_other_files_are_no_results(tmp_path, text, expected):
    file = tmp_path / "file.json"
    file.write_text(text)
    with pytest.raises(writers.BadResults) as raised:
        writers.read_json(file)
    assert expected in str(raised.value)


def test_a_missing_extra_is_named_with_its_cure(results, capsys, monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **more):
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
        return real(name, *rest, **more)

    monkeypatch.setattr(extras.importlib, "import_module", lambda name: without(name))
    assert main(["report", str(results / "out.json"), "--out", str(results / "none")]) == 1
    printed = capsys.readouterr().err
    assert "matplotlib is not installed, needed to draw plots: pip install 'fastconv[bench]'" in printed
