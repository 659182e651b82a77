"""`python -m benchmarks` as its user meets it: tables, JSON, exit statuses, interrupts, planted errors."""

import functools
import json
import math
import subprocess
import sys

import pytest
import torch
from benchmarks import machine, measure, peers, run
from benchmarks.__main__ import main

ROW_FIELDS = {
    "layer", "kind", "algorithm_asked", "layout", "choices", "macs", "flops", "parameters", "activation_bytes",
    "minimum_bytes", "saved_bytes", "workspace_bytes", "check", "errors", "speed", "samples",
}  # fmt: skip
LENET = ["run", "lenet5", "--min-time", "0.01", "--threads", "1"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The machine's peaks in a hundredth of a second, and the threads as they were."""
    monkeypatch.setattr(machine, "_timed", functools.partial(machine._timed, seconds=0.01))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def bench(tmp_path, *words):
    """(exit status, JSON) of a run of LeNet-5."""
    file = tmp_path / "out.json"
    status = main([*LENET, "--json", str(file), *words])
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]  # no temporary file stays
    return status, json.loads(file.read_text())


def numbers(value):
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from numbers(item)
    elif isinstance(value, int | float):
        yield value


@pytest.mark.parametrize("direction", ["fwd", "train"])
def test_run_verifies_measures_and_writes_everything(tmp_path, capsys, direction):
    status, data = bench(tmp_path, "--pass", direction, "--batch", "2")
    printed = capsys.readouterr().out
    assert status == 0
    assert data["schema"] == run.SCHEMA
    assert not data["interrupted"]
    assert (data["network"], data["image"], data["batch"], data["pass"]) == ("lenet5", "digits", 2, direction)
    assert data["machine"]["threads"] == 1
    assert data["machine"]["torch"] == torch.__version__
    assert data["peaks"]["flops_per_second"] > 1e8
    assert [row["layer"] for row in data["rows"]] == ["C1", "S2", "C3", "S4", "C5", "F6", "output"]
    for row in data["rows"]:
        assert row.keys() == ROW_FIELDS
        assert row["check"] == "ok"
        assert row["speed"]["torch"]["median"] > 0
        assert f"\n{row['layer']} " in printed
        if row["kind"] == "linear":
            assert row["choices"] == {}
            continue
        assert set(row["speed"]) == {"torch", "fastconv", "ratio"}
        assert row["speed"]["ratio"]["median"] > 0
        assert len(row["samples"]["torch"]["nchw"]) == len(row["samples"]["fastconv"]["nhwc"]) >= 5
        chosen = row["choices"][row["layout"]]
        assert chosen[0]["problem"] in printed
        assert chosen[0]["algorithm"] in peers.algorithms() + ["avg_pool"]
        layer_has = {"conv": 2 if row["layer"] == "C1" else 3, "avg": 2}[row["kind"]]
        assert len(chosen) == (layer_has if direction == "train" else 1)
        assert max(numbers(row["errors"])) < 1e-5
    assert all(math.isfinite(n) for n in numbers(data["rows"]))
    whole = data["whole_network"]
    assert whole["ratio"]["fastconv auto"]["median"] > 0
    for check in whole["check"]["auto"].values():
        assert check["ok"]
        assert check["top5_equal"]
        assert check["difference"] < 1e-5
        assert (check["gradient_difference"] is not None) == (direction == "train")
    assert "random weights" in printed
    assert "top-5 classes equal" in printed


def test_layers_and_algorithms_can_be_picked(tmp_path):
    status, data = bench(tmp_path, "--layers", "S2,C3", "--algorithms", "auto,direct")
    assert status == 0
    assert [(row["layer"], row["algorithm_asked"]) for row in data["rows"]] == [
        ("S2", "auto"), ("C3", "auto"), ("C3", "direct")
    ]  # fmt: skip
    forced = data["rows"][2]["choices"]["nchw"][0]
    assert (forced["algorithm"], forced["why"]) == ("direct", "forced")
    assert data["whole_network"] is None


def plant(monkeypatch, change):
    """Make fastconv's layers, called one by one, return something else."""
    right = peers.fastconv_layer
    monkeypatch.setattr(peers, "fastconv_layer", lambda layer, *rest: change(layer, lambda: right(layer, *rest)))


@pytest.mark.parametrize("value", [1e-3, math.nan], ids=["off by a thousandth", "nan"])
def test_a_wrong_layer_gets_no_speed_and_status_1(tmp_path, capsys, monkeypatch, value):
    def change(layer, call):
        y = call().detach()
        if layer.name == "C3":
            y[0, 0, 0, 0] += value * y.abs().max().item()
        return y

    plant(monkeypatch, change)
    status, data = bench(tmp_path)
    assert status == 1
    wrong = next(row for row in data["rows"] if row["layer"] == "C3")
    assert wrong["check"].startswith("failed: nchw, output: error")
    assert wrong["speed"] is None
    assert wrong["samples"] == {}
    assert all(row["speed"] for row in data["rows"] if row["layer"] != "C3")
    printed = capsys.readouterr().out
    line = next(line for line in printed.splitlines() if line.startswith("C3"))
    assert " ".join("-" * 9) in " ".join(line.split())
    assert "failed: nchw" in line
    assert "FAILED, not measured: C3" in printed


def test_a_wrong_whole_network_gets_no_speed_and_status_1(tmp_path, capsys, monkeypatch):
    right = peers.converted

    def wrong(model):
        model = right(model)
        model.C3.register_forward_hook(lambda module, given, y: 1.01 * y)  # not a linear layer: both sides share those
        return model

    monkeypatch.setattr(peers, "converted", wrong)
    status, data = bench(tmp_path)
    assert status == 1
    assert list(data["whole_network"]["speed"]) == ["torch"]
    assert "FAILED, not measured: largest difference" in capsys.readouterr().out


def test_a_refused_algorithm_is_no_failure_but_has_no_speed(tmp_path, capsys, monkeypatch):
    def change(layer, call):
        if layer.name == "C1":
            raise RuntimeError("fastconv: no algorithm for it: winograd (cpu): the filter is not 3x3")
        return call()

    plant(monkeypatch, change)
    status, data = bench(tmp_path, "--layers", "C1,C3")
    assert status == 0
    assert data["rows"][0]["check"].startswith("refused: fastconv: no algorithm")
    assert data["rows"][0]["speed"] is None
    assert data["rows"][1]["speed"]
    assert "the filter is not 3x3" in capsys.readouterr().out


def test_an_interrupt_keeps_what_was_measured(tmp_path, capsys, monkeypatch):
    right, calls = measure.interleaved, []

    def interrupted(*arguments, **more):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        right(*arguments, **more)

    monkeypatch.setattr(measure, "interleaved", interrupted)
    status, data = bench(tmp_path)
    assert status == 130
    assert data["interrupted"]
    assert [row["layer"] for row in data["rows"] if row["speed"]] == ["C1", "S2"]
    assert data["whole_network"] is None
    printed = capsys.readouterr().out
    assert "2 of 4" in printed
    assert "Interrupted" in printed


@pytest.mark.parametrize("stage", ["peaks", "load"])
def test_an_early_interrupt_still_reports(tmp_path, monkeypatch, stage):
    def interrupt(*arguments, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(machine if stage == "peaks" else run.inputs, stage, interrupt)
    status, data = bench(tmp_path)
    assert status == 130
    assert data["rows"] == []


def test_an_interrupt_while_writing_leaves_the_old_file_whole(tmp_path, monkeypatch):
    file = tmp_path / "out.json"
    run.write_json(file, {"old": 1})

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(run.pathlib.Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run.write_json(file, {"new": 2})
    assert json.loads(file.read_text()) == {"old": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_noise_is_named():
    quiet = {"matmul": {"q3": 1.05, "best": 1.0, "median": 1.02}, "load": 0.0}
    assert machine.noise(quiet, quiet, [0.01, 0.02, 0.3, 0.01]) == []
    busy = {"matmul": {"q3": 1.5, "best": 1.0, "median": 1.3}, "load": 1e3}
    assert len(machine.noise(busy, quiet, [0.3])) == 4
    assert "22% faster" in machine.noise(busy, quiet)[-1]


@pytest.mark.parametrize(
    "words, expected",
    [
        (["describe", "vg16"], "unknown network 'vg16'; did you mean vgg16"),
        (["run", "lenet"], "unknown network 'lenet'; did you mean lenet5"),
        (["run", "lenet5", "--image", "chna"], "unknown image 'chna'; did you mean china?"),
        (["run", "lenet5", "--algorithms", "dirct"], "unknown algorithm 'dirct'; did you mean direct?"),
        (["run", "lenet5", "--layers", "C9"], "lenet5 has no layer 'C9'; it has C1, S2, C3, S4, C5, F6, output"),
        (["run", "lenet5", "--json", "/nowhere/at/all.json"], "does not exist"),
        (["run", "lenet5", "--batch", "0"], "0 is not a positive number"),
        (["run", "lenet5", "--min-time", "inf"], "inf is not a positive number"),
        ([], "required"),
    ],
)
def test_bad_arguments_say_what_is_right_and_exit_with_2(capsys, words, expected):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert expected in capsys.readouterr().err


def test_list_names_networks_algorithms_and_inputs(capsys):
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    for name in ("lenet5", "alexnet-ungrouped", "vgg16", "direct", "max_pool", "china", "digits"):
        assert f"  {name} " in printed


def test_describe_as_a_command_needs_no_terminal():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "describe", "vgg16"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0
    assert "138,357,544" in done.stdout
    assert "\x1b" not in done.stdout
    assert done.stderr == ""
