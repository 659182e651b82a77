"""`python -m benchmarks` as its user meets it: tables, JSON, exit statuses, interrupts, planted errors."""

import dataclasses
import json
import math
import pathlib
import subprocess
import sys

import fastconv
import pytest
import torch
from benchmarks import contestants, machine, measure, run, whole, writers
from benchmarks.__main__ import main

ROW_FIELDS = {
    "name", "source", "kind", "pass", "dtype", "math", "batch", "layouts", "fields", "threads", "accuracy",
    "algorithm_asked", "problem", "layout", "algorithm", "why", "choices", "flops", "macs", "executed_macs",
    "minimum_bytes", "arithmetic_intensity", "workspace_bytes", "saved_bytes", "peak_bytes", "check", "errors",
    "peers_unable", "peers_wrong", "speed", "samples", "malloc", "layers",
}  # fmt: skip
LENET = ["run", "lenet5", "--min-time", "0.01", "--threads", "1"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The machine's peaks in a hundredth of a second, and the threads and torch's math as they were."""
    monkeypatch.setattr(machine, "PEAK_SECONDS", 0.01)
    monkeypatch.setattr(machine, "ieee", lambda: None)
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
    assert (data["schema"], data["kind"]) == (writers.SCHEMA, "fastconv benchmark")
    assert not data["interrupted"]
    assert (data["network"], data["image"], data["seed"]) == ("lenet5", "digits", 0)
    assert data["machine"]["torch"] == torch.__version__
    assert data["machine"]["math"]["f32"] == "ieee"
    assert data["accuracy"] == fastconv.get_accuracy()
    assert data["peaks"]["1"]["flops_per_second"]["f32"] > 1e8
    assert [row["name"] for row in data["rows"]] == ["C1", "S2", "C3", "S4", "C5", "F6", "output"]
    for row in data["rows"]:
        assert row.keys() == ROW_FIELDS
        assert row["check"] == "ok"
        assert (row["pass"], row["batch"], row["threads"], row["math"]) == (direction, 2, 1, "ieee")
        sides = row["speed"]["sides"]
        assert row["speed"]["best_peer"] == "torch"
        assert sides["torch"]["median"] > 0
        assert f"\n{row['name']} " in printed
        if row["kind"] == "linear":
            assert row["choices"] == {}
            assert set(sides) == {"torch"}
            continue
        assert set(sides) == {"torch", "fastconv"}
        assert row["speed"]["ratio"]["median"] > 0
        assert 0 < sides["fastconv"]["roofline"] < 10
        assert len(row["samples"]["torch"]["nchw"]) == len(row["samples"]["fastconv"]["nhwc"]) >= 5
        chosen = row["choices"][row["layout"]]
        assert chosen[0]["problem"] == row["problem"]
        assert row["problem"] in printed
        assert chosen[0]["algorithm"] in contestants.algorithms() + ["avg_pool"]
        layer_has = {"conv": 2 if row["name"] == "C1" else 3, "avg": 2}[row["kind"]]
        assert len(chosen) == (layer_has if direction == "train" else 1)
        assert row["arithmetic_intensity"] == row["flops"] / row["minimum_bytes"]
        assert max(numbers(row["errors"])) < 1e-5
    assert all(math.isfinite(n) for n in numbers(data["rows"]))
    (one,) = data["whole_network"]
    assert one["ratio"]["fastconv auto"]["median"] > 0
    for check in one["check"]["fastconv auto"].values():
        assert check["ok"]
        assert check["top5_equal"]
        assert check["difference"] < 1e-5
        assert (check["gradient_difference"] is not None) == (direction == "train")
    assert "random weights" in printed
    assert "top-5 classes equal" in printed


def test_layers_and_algorithms_can_be_picked(tmp_path):
    status, data = bench(tmp_path, "--layers", "S2,C3", "--algorithms", "auto,direct")
    assert status == 0
    assert [(row["name"], row["algorithm_asked"]) for row in data["rows"]] == [
        ("S2", "auto"), ("C3", "auto"), ("C3", "direct")
    ]  # fmt: skip
    forced = data["rows"][2]["choices"]["nchw"][0]
    assert (forced["algorithm"], forced["why"]) == ("direct", "forced")
    assert data["whole_network"] == []


def test_all_algorithms_are_rows_and_refusals_say_why(tmp_path, capsys):
    status, data = bench(tmp_path, "--layers", "C3", "--algorithms", "all")
    assert status == 0
    assert [row["algorithm_asked"] for row in data["rows"]] == contestants.algorithms()
    refused = next(row for row in data["rows"] if row["algorithm_asked"] == "depthwise")
    assert refused["check"].startswith("refused: fastconv: no algorithm")
    assert refused["speed"] is None
    assert "refused by depthwise: takes one input channel per group only" in capsys.readouterr().out


def test_one_and_all_threads_are_rows(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    status, data = bench(tmp_path, "--layers", "S2", "--threads", "1,all")
    assert status == 0
    assert [row["threads"] for row in data["rows"]] == [1, 2]
    assert set(data["peaks"]) == {"1", "2"}
    assert "measured peaks of 2 threads" in capsys.readouterr().out


PROBLEM = "conv n1c4h6w6 k4r3s3 st1 pd1 dl1 g1 f32 nchw fwd"


def test_problems_and_sweeps_run_and_an_impossible_one_does_not_stop_the_rest(tmp_path, capsys):
    file = tmp_path / "out.json"
    impossible = "conv n1c3h2w2 k4r3s3 st1 pd0 dl1 g1 f32 nchw fwd"
    words = ["--problem", impossible, "--problem", PROBLEM, "--sweep", "dtype=fp32,bf16", "pass=fwd,grad_weight"]
    assert main(["run", *words, "--threads", "1", "--min-time", "0.001", "--runs", "1", "--json", str(file)]) == 1
    rows = json.loads(file.read_text())["rows"]
    assert [row["check"].partition(":")[0] for row in rows] == ["impossible"] * 4 + ["ok"] * 4
    assert {(row["dtype"], row["pass"]) for row in rows if row["speed"]} == {
        ("f32", "fwd"), ("f32", "grad_weight"), ("bf16", "fwd"), ("bf16", "grad_weight")
    }  # fmt: skip
    assert rows[-1]["math"] == "fp32 sums"
    printed = capsys.readouterr().out
    assert "4 of 8 rows cannot be run: Calculated padded input size per channel: (2 x 2). Kernel size" in printed


def test_every_kind_of_problem_has_a_verified_row_with_all_its_figures(tmp_path):
    texts = {
        "conv_transpose": "conv n2c4h9w9 k6r3s3 st2 pd1 dl1 g1 f32 nchw grad_input bias",
        "max": "maxpool n2c4h13w13 r3s3 st1 pd0 dl1 f32 nchw fwd adaptive p6q6",
        "avg": "avgpool n2c4h13w13 r3s3 st1 pd0 dl1 f32 nhwc fwd adaptive p6q6",
        "lp": "lppool n2c4h12w12 r2s2 st2 pd0 dl1 f32 nchw fwd norm2",
        "conv": "conv n2c4h9w9 k6r3s3 st1 pd1 dl1 g1 f32 nchw fwd bias gelu",
    }
    file = tmp_path / "out.json"
    words = [word for text in texts.values() for word in ("--problem", text)]
    sweep = ["--sweep", "pass=fwd,train", "layout=nchw,nhwc"]
    assert main(["run", *words, *sweep, "--min-time", "0.001", "--threads", "1", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert [row["kind"] for row in rows] == [kind for kind in texts for _ in range(4)]
    for row in rows:
        assert row["check"] == "ok"
        assert row["speed"]["ratio"]["median"] > 0
        assert row["speed"]["sides"]["fastconv"]["roofline"] > 0
        assert row["minimum_bytes"] > 0
        assert bool(row["macs"]) == row["kind"].startswith("conv")
        assert max(row["errors"]["fastconv"][row["layout"]]) < 1e-5
    transposed = [row for row in rows if row["kind"] == "conv_transpose"]
    assert transposed[0]["macs"] == 2 * 6 * 5 * 5 * 4 * 3 * 3  # each element of the input meets each weight
    assert transposed[2]["macs"] == 3 * transposed[0]["macs"]  # forward and both gradients


def test_a_suite_runs(tmp_path):
    file = tmp_path / "out.json"
    words = ["--suite", "oneDNN:shapes_4bit", "--batch", "1", "--threads", "1", "--min-time", "0.001", "--runs", "1"]
    assert main(["run", *words, "--json", str(file)]) == 0
    data = json.loads(file.read_text())
    assert {row["source"] for row in data["rows"]} == {"onednn:shapes_4bit"}
    assert all(row["batch"] == 1 and row["speed"] for row in data["rows"])


def test_a_peer_that_computes_something_else_gets_no_speed_and_status_1(tmp_path, capsys, monkeypatch):
    right = contestants.torch_eager

    def wrong(case, tensors, layout, threads):
        one = right(case, tensors, layout, threads)
        return contestants.Contestant("torch.compile", layout, one.call, lambda: [t.bfloat16() for t in one.call()])

    peer = dataclasses.replace(run.PEERS["torch.compile"], contestant=wrong)
    monkeypatch.setitem(run.PEERS, "torch.compile", peer)
    status, data = bench(tmp_path, "--layers", "C3", "--peers", "torch,torch.compile")
    assert status == 1
    (row,) = data["rows"]
    assert row["check"] == "ok"
    assert set(row["speed"]["sides"]) == {"torch", "fastconv"}
    assert "exceeds" in row["peers_wrong"]["torch.compile"]
    assert "FAILED, not measured: torch.compile in C3" in capsys.readouterr().out


def test_peers_that_are_absent_or_refuse_are_named(tmp_path, capsys, monkeypatch):
    def refuse(case, tensors, layout, threads):
        raise contestants.Refused("it has no such layer")

    monkeypatch.setitem(run.PEERS, "jax", dataclasses.replace(run.PEERS["jax"], absent=lambda: "not installed"))
    other = dataclasses.replace(run.PEERS["torch.compile"], contestant=refuse)
    monkeypatch.setitem(run.PEERS, "torch.compile", other)
    status, data = bench(tmp_path, "--layers", "C3", "--peers", "torch,jax,torch.compile")
    assert status == 0
    assert data["peers_absent"] == {"jax": "not installed"}
    assert data["rows"][0]["peers_unable"] == {"torch.compile": "it has no such layer"}
    printed = capsys.readouterr().out
    assert "not here, so not measured: jax (not installed)" in printed
    assert "torch.compile not measured in 1 of 1 rows: it has no such layer" in printed


def plant(monkeypatch, change):
    """Make fastconv's layers, called one by one, return something else."""
    right = contestants.fastconv_call

    def planted(case, tensors, algorithm):
        call = right(case, tensors, algorithm)
        return lambda: change(case, call)

    monkeypatch.setattr(contestants, "fastconv_call", planted)


@pytest.mark.parametrize("value", [1e-3, math.nan], ids=["off by a thousandth", "nan"])
def test_a_wrong_layer_gets_no_speed_and_status_1(tmp_path, capsys, monkeypatch, value):
    def change(case, call):
        (y,) = call()
        if case.name == "C3":
            y[0, 0, 0, 0] += value * y.abs().max().item()
        return [y]

    plant(monkeypatch, change)
    status, data = bench(tmp_path)
    assert status == 1
    wrong = next(row for row in data["rows"] if row["name"] == "C3")
    assert wrong["check"].startswith("failed: nchw, output: error")
    assert wrong["speed"] is None
    assert wrong["samples"] == {}
    assert all(row["speed"] for row in data["rows"] if row["name"] != "C3")
    printed = capsys.readouterr().out
    line = next(line for line in printed.splitlines() if line.startswith("C3"))
    assert " ".join("-" * 9) in " ".join(line.split())
    assert "failed: nchw" in line
    assert "FAILED, not measured: C3" in printed


def test_a_wrong_whole_network_gets_no_speed_and_status_1(tmp_path, capsys, monkeypatch):
    right = whole.fastconv.convert

    def wrong(model, **more):
        model = right(model, **more)
        model.C3.register_forward_hook(lambda module, given, y: 1.01 * y)  # not a linear layer: both sides share those
        return model

    monkeypatch.setattr(whole.fastconv, "convert", wrong)
    status, data = bench(tmp_path)
    assert status == 1
    assert list(data["whole_network"][0]["speed"]) == ["torch"]
    assert "FAILED, not measured: largest difference" in capsys.readouterr().out


def test_a_refused_algorithm_is_no_failure_but_has_no_speed(tmp_path, capsys, monkeypatch):
    def change(case, call):
        if case.name == "C1":
            raise RuntimeError("fastconv: no algorithm for it: auto (cpu): the filter is not 3x3; direct (cpu): no")
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
    assert [row["name"] for row in data["rows"] if row["speed"]] == ["C1", "S2"]
    assert data["whole_network"] == []
    printed = capsys.readouterr().out
    assert "2 of 4" in printed
    assert "Interrupted" in printed


def test_an_error_of_ones_own_loses_nothing_that_was_measured(tmp_path, capsys, monkeypatch):
    def broken(*arguments, **more):
        raise KeyError("a mistake in the benchmark")

    monkeypatch.setattr(whole.WholeNetwork, "run", broken)
    status, data = bench(tmp_path)
    assert status == 1
    assert all(row["speed"] for row in data["rows"])
    assert "a mistake in the benchmark" in data["crash"]
    printed = capsys.readouterr()
    assert "Stopped by an error (below): only what was measured" in printed.out
    assert "a mistake in the benchmark" in printed.err


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
    writers.write_json(file, {"old": 1})

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(pathlib.Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        writers.write_json(file, {"new": 2})
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
        (["run", "lenet5", "--threads", "1,none"], "invalid"),
        (["run", "--suite", "onednn:shapes_resnet50"], "did you mean onednn:shapes_resnet_50"),
        (["run", "lenet5", "--peers", "tensorflow"], "unknown peer 'tensorflow'; did you mean torch"),
        (["run", "lenet5", "--sweep", "bach=1"], "unknown sweep key 'bach'; did you mean batch"),
        (["run", "lenet5", "--sweep", "batch=1,2", "--batch", "2"], "contradict"),
        (["run"], "name one thing to run"),
        (["run", "lenet5", "--suite", "onednn:shapes_vgg_19"], "name one thing to run"),
        (["run", "--problem", "conv n1"], "bad problem text"),
        (["run", "--problem", PROBLEM, "--layers", "C1"], "--layers is for networks"),
        (["run", "--csv-file", "/nowhere.csv"], "/nowhere.csv cannot be read"),
        (["compare", "/nowhere.json", "/nowhere.json"], "/nowhere.json cannot be read"),
        (["report", "/nowhere.json"], "/nowhere.json cannot be read"),
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
    for name in ("lenet5", "alexnet-ungrouped", "vgg16", "direct", "max_pool", "china", "digits", "onnxruntime",
                 "batch",
                 "onednn:shapes_resnet_50"):  # fmt: skip
        assert f"  {name} " in printed
    assert "16 convolutions, 1 pools" in printed


def test_describe_as_a_command_needs_no_terminal():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "describe", "vgg16"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0
    assert "138,357,544" in done.stdout
    assert "\x1b" not in done.stdout
    assert done.stderr == ""
