"""Recordings: the plan covers every layer once, parts survive interrupts, the file knows what each row is."""

import json
import pathlib

import pytest
from benchmarks import measure, networks, record, writers
from benchmarks.__main__ import main
from benchmarks.record_plan import Part, Settings, predicted_seconds, users

LENET = ["--quick", "--networks", "lenet5", "--batches", "1", "--threads", "1", "--passes", "fwd"]


def layers_of(name, training):
    return [layer.name for layer, _, _ in networks.NETWORKS[name].walk(training) if layer.kind != "linear"]


@pytest.mark.parametrize("direction", ["fwd", "train"])
def test_every_layer_of_every_network_is_measured_exactly_once(direction):
    settings = Settings()
    found = []
    for name in settings.networks:
        measured = users(settings, Part("default", direction, 8, name, "layers"))
        assert all(layers[0] == [name, first] for first, layers in measured.items())
        found += [tuple(layer) for layers in measured.values() for layer in layers]
    expected = [(name, layer) for name in settings.networks for layer in layers_of(name, direction == "train")]
    assert sorted(found) == sorted(expected)
    once = users(settings, Part("default", direction, 8, "resnet50", "layers"))
    assert len(once) < len(layers_of("resnet50", False)) / 2  # many are equal, also to ResNet-18's


def test_the_plan_has_every_combination_and_the_most_important_first():
    settings = Settings()
    parts = settings.parts()
    assert len({part.key() for part in parts}) == len(parts) == 2 * 2 * 2 * 7 * 2
    assert (parts[0].malloc, parts[0].direction, parts[0].batch) == ("default", "fwd", 1)
    assert {part.malloc for part in parts[: len(parts) // 2]} == {"default"}
    assert settings.threads_of(Part("tuned", "train", 8, "vgg16", "whole")) == (1, 2)
    quick = Settings(thorough=False)
    assert quick.threads_of(Part("tuned", "train", 8, "vgg16", "whole")) == (2,)
    assert quick.threads_of(Part("default", "train", 8, "vgg16", "layers")) == (2,)
    assert quick.threads_of(Part("default", "fwd", 8, "vgg16", "layers")) == (1, 2)
    assert quick.looks_at_memory(Part("default", "fwd", 1, "vgg16", "whole"))
    assert not quick.looks_at_memory(Part("default", "fwd", 8, "vgg16", "whole"))
    assert settings.looks_at_memory(Part("default", "fwd", 8, "vgg16", "whole"))
    large, small = (Part("default", "train", batch, "vgg16", "layers") for batch in (8, 1))
    assert predicted_seconds(settings, large) > 3 * predicted_seconds(settings, small) > 0


def read(folder):
    return writers.read_json(folder / "results.json")


def test_a_recording_is_merged_resumed_and_reported(tmp_path, capsys, monkeypatch):
    words = ["record", str(tmp_path), *LENET]
    assert main([*words, "--minutes", "0.0001"]) == 0  # no part fits
    assert not (tmp_path / "results.json").exists()
    assert "not measured yet: 4 of 4 parts" in capsys.readouterr().out

    first = record.Recording._tell

    def interrupt(self, part, answer):
        first(self, part, answer)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(record.Recording, "_tell", interrupt)
        assert main(words) == 130
    data = read(tmp_path)
    left = (("default", "whole"), ("tuned", "layers"), ("tuned", "whole"))
    assert data["recording"]["missing"] == [f"{malloc}-fwd-n1-lenet5-{what}" for malloc, what in left]
    kept = data["rows"]
    assert [row["layers"] for row in kept] == [[["lenet5", name]] for name in ("C1", "S2", "C3", "S4")]

    assert main(words) == 0
    err = capsys.readouterr().err
    assert "1 parts are there already" in err
    assert "[3/3]" in err
    data = read(tmp_path)
    assert data["recording"]["missing"] == []
    assert [r["samples"] for r in data["rows"][: len(kept)]] == [r["samples"] for r in kept]  # not measured again
    assert [row["malloc"] for row in data["rows"]] == ["default"] * 4 + ["tuned"] * 4  # as the process itself saw it
    assert all(row["check"] == "ok" and row["speed"]["ratio"]["median"] > 0 for row in data["rows"])
    for row in data["rows"]:
        assert set(row["samples"]["torch"]) == set(row["samples"]["fastconv"]) == {"nchw", "nhwc"}
    looked = [row["saved_bytes"] for row in data["rows"]]
    assert all(looked[:4])
    assert not any(looked[4:])  # memory is looked at once
    whole = data["whole_network"]
    assert [(one["network"], one["batch"], one["pass"], one["threads"], one["malloc"]) for one in whole] == [
        ("lenet5", 1, "fwd", 1, "default"), ("lenet5", 1, "fwd", 1, "tuned")]  # fmt: skip
    assert whole[0]["peak_bytes"]["torch"]["nchw"] > 4 * whole[0]["parameters"]
    assert (tmp_path / "report" / "index.html").exists()
    assert not (tmp_path / "parts").exists()


def test_parts_of_another_build_are_measured_again(tmp_path, monkeypatch):
    settings = Settings(networks=("lenet5",), threads=(1,), batches=(1,), mallocs=("default",), directions=("fwd",))
    recording = record.Recording(tmp_path, settings, None)
    part = settings.parts()[0]
    recording.path(part).parent.mkdir()
    recording.path(part).write_text(json.dumps({"fingerprint": record.fingerprint(settings), "seconds": 1.0}))
    assert list(recording.done()) == [part]
    monkeypatch.setattr(record.machine, "cpu_model", lambda: "another one")
    assert record.Recording(tmp_path, settings, None).done() == {}


@pytest.mark.parametrize("when", ["before the first words", "any time"])
def test_a_process_that_dies_is_said_and_keeps_what_was_measured(tmp_path, capsys, monkeypatch, when):
    monkeypatch.setattr(record.sys, "executable", "/bin/false")
    if when != "any time":
        send = record.Recording._send

        def send_to_the_dead(self, process, **words):
            process.wait()
            send(self, process, **words)

        monkeypatch.setattr(record.Recording, "_send", send_to_the_dead)
    assert main(["record", str(tmp_path), *LENET]) == 1
    assert "the measuring process ended with status 1" in capsys.readouterr().err


def test_a_recordings_own_load_is_no_noise(tmp_path, monkeypatch):
    from benchmarks import recorder

    quiet = {"median": 1.0, "q3": 1.0, "best": 1.0}
    monkeypatch.setattr(recorder.machine, "peaks", lambda: {"load": 1.9, "matmul": quiet, "copy": quiet})
    monkeypatch.setattr(recorder.machine, "ieee", lambda: None)
    monkeypatch.setattr(recorder.torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(recorder.machine.os, "cpu_count", lambda: 2)
    one = recorder.Recorder(tmp_path, "", Settings(threads=(2,)))
    peaks = recorder.machine.peaks()
    assert recorder.machine.noise(one._of_others(peaks)) != []  # nothing of ours has run yet
    assert recorder.machine.noise(one._of_others(peaks)) == []


@pytest.mark.parametrize(
    "words, expected",
    [
        (["--networks", "lenet6"], "unknown network 'lenet6'; did you mean lenet5"),
        (["--mallocs", "tund"], "unknown malloc 'tund'; did you mean tuned"),
        (["--passes", "trian"], "unknown pass 'trian'; did you mean train"),
        (["--batches", "0"], "0 is not a positive number"),
    ],
)
def test_bad_words_name_the_nearest(tmp_path, capsys, words, expected):
    with pytest.raises(SystemExit) as left:
        main(["record", str(tmp_path), *words])
    assert left.value.code == 2
    assert expected in capsys.readouterr().err


def test_slow_calls_are_not_repeated_to_warm_up_and_stop_in_time(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])
    calls = []

    def call(name, seconds):
        calls.append(name)
        clock[0] += seconds

    samples = {"a": [], "b": []}
    sides = {"a": lambda: call("a", 3.0), "b": lambda: call("b", 0.001)}
    measure.interleaved(sides, samples, 5, 1.0, most_seconds=4.0, known={"a": 3.0, "b": 0.001})
    assert calls.count("a") == 2  # no warm-up, two rounds
    assert len(samples["a"]) == len(samples["b"]) == 2


def test_the_folder_of_results_says_how_they_were_obtained():
    text = (pathlib.Path(record.__file__).parent / "results" / "README.md").read_text()
    for words in ("python -m benchmarks record", "python -m benchmarks readme", "MALLOC_MMAP_MAX_"):
        assert words in text
