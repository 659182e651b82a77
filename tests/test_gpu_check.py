"""`make gpu-check` without a GPU: steps of other commands, reports and tools written here, times from the emulator."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from benchmarks.gpu import check, check_summary, environment, findings, sanitizer, speed, steps
from benchmarks.gpu.device import Cuda
from benchmarks.gpu.steps import Step
from build_tools import verified
from fake_cuda import FakeCuda

FACTS = {"device": "NVIDIA Test 1", "capability": "9.0", "torch": "2.11", "nvcc": None}
TABLE = """
FASTCONV_GPU_CONV_ROW(direct, forward, floats, sm_75, "sums", "cuda/direct.cu", direct)
FASTCONV_GPU_CONV_ROW(im2col, forward, floats, sm_75, "columns", "cuda/im2col.cu", im2col)
FASTCONV_GPU_POOL_ROW(max_pool, forward, floats, sm_75, "windows", "cuda/max_pool.cu", max_pool)
"""
KNOWN = {"direct": "conv", "im2col": "conv", "max_pool": "pool"}
QUICK_SIGNALS = ((signal.SIGINT, 2.0), (signal.SIGKILL, 2.0))


@pytest.fixture
def root(tmp_path):
    (tmp_path / "csrc/core").mkdir(parents=True)
    (tmp_path / "csrc/cuda").mkdir()
    (tmp_path / "csrc/core/algorithms.inc").write_text(TABLE)
    for row in KNOWN:
        (tmp_path / f"csrc/cuda/{row}.cu").write_text(f"// {row}\n")
    return tmp_path


def says(name, text="", status=0, limit=20.0, **more):
    code = f"import sys; print({text!r}); sys.exit({status})"
    return Step(name, (sys.executable, "-S", "-c", code), limit, **more)


def found_gpu():
    return says("environment", json.dumps(FACTS), judge=findings.environment)


def a_check(root, *made, **more):
    return check.Check(found_gpu(), lambda facts, folder: list(made), root=root, signals=QUICK_SIGNALS, **more)


def result(root, name="check.json"):
    return json.loads((root / "benchmarks/results/nvidia-test-1" / name).read_text())


def statuses(data):
    return {step["name"]: step["status"] for step in data["steps"]}


# Steps


def test_steps_run_in_order_and_fail_alone(root, capsys):
    run = a_check(
        root,
        says("build", "a.cu(3): error: expected a ;\nninja: stopped", 1),
        says("atoms", "GPU, sm_90\nmma: ok\nldmatrix.x4: element 3 is 7, not 8\n1 mismatches", 1, judge=findings.atoms),
        says("rows:direct", needs=("build",)),
        says("speed", needs=("rows:direct",)),
        says("tests", "fine"),
    )
    assert run.run() == 1
    data = result(root)
    expected = {"environment": "passed", "build": "failed", "atoms": "failed", "rows:direct": "not run",
                "tests": "passed", "speed": "not run"}  # fmt: skip
    assert statuses(data) == expected and list(statuses(data)) == list(expected)
    records = {step["name"]: step for step in data["steps"]}
    assert records["build"]["errors"] == ["a.cu(3): error: expected a ;"] and records["build"]["exit"] == 1
    assert records["atoms"]["errors"] == ["ldmatrix.x4: element 3 is 7, not 8"] and records["atoms"]["checked"] == 2
    assert records["rows:direct"]["why"] == "it needs build"
    assert not data["passed"] and data["schema"] == check.SCHEMA and data["gpu"] == "NVIDIA Test 1"
    folder = root / "benchmarks/results/nvidia-test-1"
    assert sorted(p.name for p in (folder / "logs").iterdir()) == [
        "atoms.log", "build.log", "environment.log", "tests.log"]  # fmt: skip
    assert "fine" in (folder / "logs/tests.log").read_text()
    assert not (folder / "verified.json").exists()  # no test of a row ran
    text = (folder / "summary.md").read_text()
    assert "FAILED: build, atoms" in text and "NOT RUN: rows:direct, speed" in text
    assert "ldmatrix.x4: element 3 is 7, not 8" in text and "a.cu(3): error" in text
    assert "build" in capsys.readouterr().out


def test_all_passed(root):
    run = a_check(root, says("build"), says("atoms", "mma: ok", judge=findings.atoms))
    assert run.run() == 0 and result(root)["passed"]
    text = (root / "benchmarks/results/nvidia-test-1/summary.md").read_text()
    assert "All steps passed." in text and "FAILED" not in text


def test_atoms_that_say_nothing_did_not_pass(root):
    assert a_check(root, says("atoms", judge=findings.atoms)).run() == 1


def test_a_time_limit_ends_the_step_and_its_children_alone(root):
    code = "import subprocess, time; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); time.sleep(60)"
    slow = Step("build", (sys.executable, "-S", "-c", code), 0.5)
    begin = time.perf_counter()
    assert a_check(root, slow, says("atoms"), Step("tests", ("/nowhere/at/all",), 5)).run() == 1
    assert time.perf_counter() - begin < 8
    assert statuses(result(root)) == {
        "environment": "passed", "build": "timed out", "atoms": "passed", "tests": "failed"}  # fmt: skip
    log = (root / "benchmarks/results/nvidia-test-1/logs/build.log").read_text().splitlines()
    child = int(next(line for line in log if line.isdigit()))
    deadline = time.perf_counter() + 3
    while time.perf_counter() < deadline and alive(child):
        time.sleep(0.02)
    assert not alive(child)


def alive(pid):
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"  # killed, though nobody has waited for it
    except OSError:
        return False


def test_the_budget_is_shared_out(root):
    slow = Step("build", (sys.executable, "-S", "-c", "import time; time.sleep(0.4)"), 20)
    run = a_check(root, slow, says("speed"), budget=10.35)  # 10 s are the least that a step is run with
    assert run.run() == 1
    assert statuses(result(root))["speed"] == "not run" and "budget" in result(root)["steps"][-1]["why"]
    told = Step("speed", ("--budget", "{seconds}"), 100)
    assert steps.words(told, 70) == ["--budget", "50"] and steps.words(told, 3) == ["--budget", "1"]


def test_an_interrupt_keeps_what_is_done(root):
    slow = Step("tests", ("sleep", "60"), 50)
    run = a_check(root, says("build"), slow, says("speed"))

    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        original = steps.run

        def timed(step, *args):
            if step is slow:
                signal.setitimer(signal.ITIMER_REAL, 0.3)
            return original(step, *args)

        steps.run = timed
        assert run.run() == 130
    finally:
        steps.run = original
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    data = result(root)
    assert statuses(data) == {
        "environment": "passed", "build": "passed", "tests": "interrupted", "speed": "not run"}  # fmt: skip
    assert data["stopped_by"] == "an interrupt" and not data["passed"]
    assert "an interrupt ended this run" in (root / "benchmarks/results/nvidia-test-1/summary.md").read_text()


def test_no_gpu(root, tmp_path, monkeypatch, capsys):
    missing = says("environment", "error: no NVIDIA GPU that torch can use", 1, judge=findings.environment)
    monkeypatch.setattr(check, "environment_step", lambda: missing)
    assert check.main(["--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr()
    assert "no NVIDIA GPU" in said.err and "no NVIDIA GPU" in said.out
    data = json.loads((tmp_path / "out/check.json").read_text())
    assert statuses(data) == {"environment": "failed"} and data["gpu"] is None


def test_the_environment_is_told_as_json(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(environment, "open_device", lambda kind: Cuda(cuda=FakeCuda()))
    assert environment.main() == 0
    (tmp_path / "log").write_text(capsys.readouterr().out)
    found = findings.environment(steps.Outcome(0, 1.0), tmp_path / "log")["facts"]
    assert (found["device"], found["capability"]) == ("NVIDIA H200", "9.0") and found["packages"]["torch"]
    assert check.slug(found["device"]) == "nvidia-h200"


def test_reports_of_an_earlier_run_do_not_count(root):
    path = root / "direct.xml"
    report(path, **own("direct", "passed", "passed"))
    judge = lambda outcome, log: findings.rows(outcome, path, KNOWN)  # noqa: E731
    assert a_check(root, says("rows:direct", "No module named pytest", 1, judge=judge, makes=(path,))).run() == 1
    assert not result(root)["rows"]["direct"]["passed"]
    assert result(root)["steps"][1]["errors"] == ["pytest left no report"]


def test_only_some_steps_and_what_they_need():
    made = check.make_steps(FACTS, check.ROOT, False, KNOWN)
    names = [step.name for step in made]
    groups = list(dict.fromkeys(name.split(":")[0] for name in names))
    assert groups == [*check.GROUPS[1:]]
    assert names[2:6] == ["rows:direct", "rows:im2col", "rows:max_pool", "rows:shared"]
    assert [step.name for step in check.choose(made, ["speed"])] == ["build", "speed"]
    assert [step.name for step in check.choose(made, ["atoms"])] == ["atoms"]
    assert [step.name for step in check.choose(made, ["rows:im2col"])] == ["build", "rows:im2col"]
    with pytest.raises(ValueError, match="quickly"):
        check.choose(made, ["quickly"])
    build = made[0]
    assert build.env == {"FASTCONV_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "9.0"}
    assert "tests" not in [step.name for step in check.make_steps(FACTS, check.ROOT, True, KNOWN)]


def test_only_keeps_what_an_earlier_run_found(root):
    assert a_check(root, says("build"), says("atoms", status=1)).run() == 1
    assert a_check(root, says("build"), says("atoms"), says("speed"), only=["speed"]).run() == 0
    data = result(root)
    assert statuses(data) == {"environment": "passed", "build": "passed", "atoms": "failed", "speed": "passed"}
    (root / "csrc/cuda/direct.cu").write_text("// changed\n")
    a_check(root, says("speed"), only=["speed"]).run()
    assert "atoms" not in statuses(result(root))  # of other sources


# Rows


def report(path, **tests):
    """A JUnit report: {test: "passed", "skipped", or what failed}"""
    body = ""
    for name, said in tests.items():
        inner = {"passed": "", "skipped": "<skipped/>"}.get(said, f'<failure message="{said}">trace</failure>')
        body += f'<testcase classname="tests.test_cuda_rows" name="{name}" time="1">{inner}</testcase>'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"<testsuites><testsuite>{body}</testsuite></testsuites>")


def row_steps(root, results, statuses=None):
    """Steps that leave the given reports: {"direct": {test: result}, ...}"""
    made = []
    for name, tests in results.items():
        path = root / f"{name}.xml"
        report(path, **tests)
        wrong = any(said not in ("passed", "skipped") for said in tests.values())
        status = (statuses or {}).get(name, int(wrong))
        judge = lambda outcome, log, path=path: findings.rows(outcome, path, KNOWN)  # noqa: E731
        made.append(says(f"rows:{name}", status=status, judge=judge))
    return made


def own(row, *results):
    return {f"test_small_problems[{row}-{dtype}]": said for dtype, said in zip(("f32", "bf16"), results)}


SHARED = {"test_real_sizes[conv n1-c3 fwd]": "passed", "test_any_problem_in_any_layout": "passed",
          "test_a_captured_graph_replays": "passed"}  # fmt: skip
ALL = {row: own(row, "passed", "passed") for row in KNOWN}


@pytest.mark.parametrize(
    "changes, statuses, passed",
    [
        ({}, {}, ["direct", "im2col", "max_pool"]),
        ({"direct": own("direct", "passed", "y: error 1 &gt; 0.1")}, {}, ["im2col", "max_pool"]),
        ({"im2col": own("im2col", "passed", "skipped")}, {}, ["direct", "max_pool"]),
        ({"shared": {**SHARED, "test_real_sizes[conv n1-c3 fwd]": "wrong"}}, {}, ["max_pool"]),
        ({"shared": {**SHARED, "test_a_captured_graph_replays": "wrong"}}, {}, []),
        ({"max_pool": {}}, {"max_pool": 5}, ["direct", "im2col"]),
        ({}, {"direct": 2, "im2col": -11}, ["max_pool"]),  # interrupted; a crash after the report
        ({}, {"shared": 2}, []),
    ],
)
def test_rows_are_verified_if_all_of_their_tests_passed(root, changes, statuses, passed):
    run = a_check(root, *row_steps(root, {**ALL, "shared": SHARED, **changes}, statuses))
    assert run.run() == (0 if len(passed) == 3 else 1)
    record = result(root, "verified.json")
    main = verified.gpu_rows(root)
    assert record["gpu"] == "NVIDIA Test 1" and set(record) >= {"commit", "cuda_modified"}
    assert record["rows"] == {row: verified.source_hash(root, main[row]) for row in passed}
    seen = verified.verified_on(root)
    assert [row for row in KNOWN if "NVIDIA Test 1" in seen[row]] == passed
    assert [row for row, counts in result(root)["rows"].items() if counts["passed_all"]] == passed


def test_without_the_shared_tests_no_row_is_verified(root):
    made = row_steps(root, ALL)
    assert a_check(root, *made).run() == 0
    assert result(root, "verified.json")["rows"] == {}


def test_a_row_whose_sources_changed_meanwhile_is_not_verified(root):
    change = Step("tests", (sys.executable, "-S", "-c", "open('csrc/cuda/direct.cu', 'w').write('new')"), 20)
    assert a_check(root, *row_steps(root, {**ALL, "shared": SHARED}), change).run() == 0
    assert set(result(root, "verified.json")["rows"]) == {"im2col", "max_pool"}


def test_failures_are_named(root):
    a_check(root, *row_steps(root, {"direct": own("direct", "passed", "y: error 1 on direct")})).run()
    data = result(root)
    assert data["steps"][1]["counts"] == {"passed": 1, "failed": 1, "skipped": 0}
    line = "test_cuda_rows::test_small_problems[direct-bf16]: y: error 1 on direct"
    assert data["steps"][1]["errors"] == [line]
    text = (root / "benchmarks/results/nvidia-test-1/summary.md").read_text()
    assert line in text and "| direct | **FAILED** | 1 | 1 | 0 |" in text


def test_selections_take_every_test_once(tmp_path):
    """pytest's -k of the steps, on tests named as those of test_cuda_rows.py."""
    (tmp_path / "test_names.py").write_text(
        "import pytest\n"
        "both = lambda names: lambda f: pytest.mark.parametrize('dtype', ['f32', 'f16', 'bf16'])("
        "pytest.mark.parametrize('name', names)(f))\n"
        "@both(['direct', 'im2col'])\ndef test_small_problems(name, dtype): pass\n"
        "@both(['direct', 'im2col'])\ndef test_real_layers(name, dtype): pass\n"
        "@both(['max_pool'])\ndef test_pools(name, dtype): pass\n"
        "@pytest.mark.parametrize('text', ['conv n1 k2 f32 nchw fwd'])\ndef test_real_sizes(text): pass\n"
        "def test_a_captured_graph_replays(): pass\n"
    )
    made = {step.name: step.command for step in check.make_steps(FACTS, tmp_path, False, KNOWN)}

    def collected(expression):
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "-k", expression,
             "test_names.py"], cwd=tmp_path, capture_output=True, text=True)  # fmt: skip
        return [line.partition("::")[2] for line in done.stdout.splitlines() if "::" in line]

    assert len(collected(made["rows:direct"][-1])) == 6
    assert collected(made["rows:shared"][-1]) == [
        "test_real_sizes[conv n1 k2 f32 nchw fwd]", "test_a_captured_graph_replays"]  # fmt: skip
    small = ["test_small_problems[direct-bf16]", "test_small_problems[im2col-bf16]"]
    assert collected(sanitizer.selection(True)) == [*small, "test_pools[max_pool-bf16]"]


# Sanitizer


@pytest.mark.parametrize(
    "script, reason",
    [
        ('case "$*" in *none) exit 0;; *) exit 86;; esac', None),
        ("exit 0", "misses its planted bug"),
        ("echo '========= Error: Device not supported'; exit 1", "Device not supported"),
    ],
)
def test_a_sanitizer_is_believed_if_it_finds_the_planted_bug(tmp_path, script, reason):
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    if reason is None:
        sanitizer.believe(str(tool), "racecheck", tmp_path / "control")
        return
    with pytest.raises(sanitizer.Unavailable, match=reason):
        sanitizer.believe(str(tool), "racecheck", tmp_path / "control")


def test_a_missing_sanitizer_is_no_success(root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sanitizer.shutil, "which", lambda *args, **more: None)
    monkeypatch.setattr(sanitizer.facts, "find_nvcc", lambda: (None, None))
    assert sanitizer.main(["memcheck", "--out", str(tmp_path)]) == findings.UNAVAILABLE
    said = capsys.readouterr().out
    judge = lambda outcome, log: findings.sanitizer(outcome, log, tmp_path / "none.xml", KNOWN)  # noqa: E731
    assert a_check(root, says("sanitizer:memcheck", said, findings.UNAVAILABLE, judge=judge)).run() == 1
    assert statuses(result(root))["sanitizer:memcheck"] == "unavailable"
    text = (root / "benchmarks/results/nvidia-test-1/summary.md").read_text()
    assert "NOT CHECKED, the tool is missing or does not work: sanitizer:memcheck" in text
    assert "there is no compute-sanitizer" in text


def test_a_sanitizer_passes_if_every_row_ran_and_nothing_was_found(tmp_path):
    log, xml = tmp_path / "log", tmp_path / "a.xml"
    log.write_text("=========     Race reported between Write access at f+0x1 and Read access\n")
    passed = {name: said for row in KNOWN for name, said in own(row, "passed", "passed").items()}
    report(xml, **passed)
    assert "status" not in findings.sanitizer(steps.Outcome(0, 1.0), log, xml, KNOWN)
    found = findings.sanitizer(steps.Outcome(1, 1.0), log, xml, KNOWN)
    assert "Race reported" in found["errors"][0]
    report(xml, **own("direct", "passed", "passed"))
    found = findings.sanitizer(steps.Outcome(0, 1.0), log, xml, KNOWN)
    assert found["status"] == "failed" and found["errors"] == ["no test ran under the tool for im2col, max_pool"]
    assert sanitizer.clean("========= ERROR SUMMARY: 0 errors") is True
    assert sanitizer.clean("========= RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)") is False
    assert sanitizer.clean("========= ERROR SUMMARY: 0 errors\n========= ERROR SUMMARY: 1 error") is False
    assert sanitizer.clean("") is None


# Speed


@pytest.fixture
def few(monkeypatch):
    """A convolution, a depthwise one, two pools; threads and the math mode as they were, afterwards."""
    every = speed.groups(True, True)
    kinds = {}
    for group in every:
        depthwise = group.kind == "conv" and group.layer.layer.groups == group.layer.shape[0]
        kinds.setdefault((group.kind, depthwise), group)
    monkeypatch.setattr(speed, "groups", lambda few, dry: list(kinds.values()))
    tuned, threads = torch.backends.cudnn.benchmark, torch.get_num_threads()
    math_modes = torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision
    yield
    torch.backends.cudnn.benchmark = tuned
    torch.set_num_threads(threads)
    torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision = math_modes


def test_the_plan_of_speeds_has_every_kind():
    wanted = speed.groups(False)
    assert {group.mode for group in wanted[: len(wanted) // 2]} == {"bf16"}
    assert {group.kind for group in wanted} == {"conv", "max", "avg"}
    assert any(group.kind == "conv" and group.layer.layer.groups > 1 for group in wanted[:20])
    assert len(speed.groups(True)) < len(wanted) < 150


def test_speeds_of_the_emulator(tmp_path, few):
    assert speed.main(["--device", "simulated", "--out", str(tmp_path), "--budget", "30"]) == 0
    data = json.loads((tmp_path / "speed.json").read_text())
    assert data["machine"]["device"] == "simulated" and not data["failed"] and not data["not_reached"]
    ours = [row for row in data["rows"] if row["side"] == "fastconv"]
    assert {row["algorithm"] for row in ours} == set(verified.gpu_rows(check.ROOT)) - {"lp_pool"}  # no network has one
    assert {row["pass"] for row in ours} == {"forward", "grad_input", "grad_weight"}
    assert {row["layout"] for row in ours} == {"nchw", "nhwc"}
    for row in ours:
        assert row["seconds"] > 0 and row["spread"] >= 0 and row["ratio"]["median"] > 0 and row["tflops"] >= 0
        assert row["error"] <= 1e-2 and row["problem"] and row["gbytes_per_second"] > 0
    outcome = findings.speed(steps.Outcome(0, 1.0), tmp_path / "speed.json")
    assert outcome["measured"] == len(ours) and "status" not in outcome
    facts = {"gpu": "g", "commit": None, "modified": None, "passed": True, "steps": [], "rows": {}, "environment": {},
             "started": "", "seconds": 1.0, "quick": False, "stopped_by": None}  # fmt: skip
    text = check_summary.markdown(facts, data)
    assert "## Speed" in text and "| direct | bf16 |" in text and "vgg16" in text


def test_speeds_by_a_gpus_clocks(tmp_path, few):
    """The lines of an undiminished run: events and graphs, on a stand-in for torch.cuda."""
    device = Cuda(cuda=FakeCuda())
    device.torch_device, device.cache_bytes = torch.device("cpu"), 1 << 10  # few copies, short samples
    options = argparse.Namespace(out=tmp_path, budget=30.0, few=True, dry=False, quick=True)
    run = speed.Speed(options, device, "simulated")
    run._sample_seconds = 1e-6
    run.run()
    assert run.stopped is None and not run.failed and not run.waiting
    timed = [row for row in run.rows if row["side"] == "fastconv"]
    assert {row["algorithm"] for row in timed} == set(verified.gpu_rows(check.ROOT)) - {"lp_pool"}  # no network has one
    assert {row["timer"] for row in timed} <= {"events", "graph"} and all("ratio" in row for row in timed)


def test_wrong_results_are_not_timed(tmp_path, few, monkeypatch):
    right = speed.conv_calls

    def planted(layer, row, accuracy):
        calls = right(layer, row, accuracy)
        return {**calls, "forward": lambda *args: calls["forward"](*args) * 1.5} if row == "im2col" else calls

    monkeypatch.setattr(speed, "conv_calls", planted)
    assert speed.main(["--device", "simulated", "--out", str(tmp_path), "--budget", "30"]) == 1
    data = json.loads((tmp_path / "speed.json").read_text())
    assert data["failed"] and all(line["algorithm"] == "im2col" for line in data["failed"])
    timed = {(row["algorithm"], row["pass"]) for row in data["rows"]}
    assert ("im2col", "forward") not in timed and ("im2col", "grad_input") in timed
    outcome = findings.speed(steps.Outcome(1, 1.0), tmp_path / "speed.json")
    assert "im2col" in outcome["errors"][0] and "exceeds" in outcome["errors"][0]
