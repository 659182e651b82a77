"""Selection: forced, else the cheapest row that supports the problem; refusals with every reason; the plan cache."""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import fastconv
from fastconv import _C

ROOT = Path(__file__).resolve().parent.parent
ROWS = _C.algorithms()
CONV_ROWS = [row for row in ROWS if row["kind"] == "conv" and row["device"] == "cpu"]
CONV = "conv n2c8h14w14 k16r3s3 st1 pd1 dl1 g1 f32 nchw fwd"
WORD_OF_PASS = {"forward": "fwd", "grad_input": "grad_input", "grad_weight": "grad_weight"}

# --- the selector over a table of made-up rows (tests/cpp/selection.cpp) ---------------------------------

NO_ALGORITHM = "fastconv: no algorithm for conv n1c2h8w8 "
THREE = "k2r3s3 st1 pd1 dl1 g1 f32 nchw"
EXPECTED = {
    "cheapest": "quick (cpu)",
    "cheapest that supports it": "plain (cpu)",
    "cheapest deterministic": "plain (cpu)",
    "cheapest on cuda": "far (cuda)",
    "forced": "plain (cpu)",
    "forced on cuda": "plain (cuda)",
    "forced, pass not listed": "plain (cpu)",
    # plain is there on cuda, without grad_weight: the choice is auto's, which finds nothing
    "forced, pass not listed on this device": NO_ALGORITHM + THREE + " grad_weight: plain (cpu): runs on cpu only; "
    "quick (cpu): runs on cpu only; broken (cpu): runs on cpu only; far (cuda): does not do grad_weight; "
    "plain (cuda): does not do grad_weight",
    "forced, refuses": NO_ALGORITHM + "k2r1s1 st1 pd0 dl1 g1 f32 nchw fwd: "
    "plain (cpu): supports it, but another algorithm is forced; quick (cpu): only 3 x 3 filters; "
    "broken (cpu): does not do forward; far (cuda): runs on cuda only; plain (cuda): runs on cuda only",
    "forced, lists the pass and refuses": NO_ALGORITHM + THREE + " grad_weight: "
    "plain (cpu): supports it, but another algorithm is forced; quick (cpu): does not do grad_weight; "
    "broken (cpu): never ready; far (cuda): runs on cuda only; plain (cuda): runs on cuda only",
    "forced, not on this device": NO_ALGORITHM + THREE + " fwd: "
    "plain (cpu): supports it, but another algorithm is forced; "
    "quick (cpu): supports it, but another algorithm is forced; broken (cpu): does not do forward; "
    "far (cuda): runs on cuda only; plain (cuda): runs on cuda only",
    "forced, not deterministic": NO_ALGORITHM + THREE + " fwd det: "
    "plain (cpu): supports it, but another algorithm is forced; quick (cpu): is not deterministic; "
    "broken (cpu): does not do forward; far (cuda): runs on cuda only; plain (cuda): runs on cuda only",
    "none": NO_ALGORITHM + "k2r1s1 st1 pd0 dl1 g1 bf16 nchw fwd: plain (cpu): does not take bf16; "
    "quick (cpu): does not take bf16; broken (cpu): does not do forward; far (cuda): runs on cuda only; "
    "plain (cuda): runs on cuda only",
    "unknown": "fastconv: unknown algorithm 'nosuch'; known are: auto, plain, quick, broken, far",
    "reasons": "plain: predicted 3e+03 ms, the chosen one 1e+03 ms; *quick: the cheapest, predicted 1e+03 ms; "
    "broken: does not do forward; far: runs on cuda only; plain: runs on cuda only;",
    "reasons when forced": "*plain: forced; quick: plain is forced; broken: does not do forward; "
    "far: runs on cuda only; plain: runs on cuda only;",
    "reasons when forced in vain": "*plain: the cheapest, predicted 3e+03 ms (quick does not do grad_input); "
    "quick: does not do grad_input; broken: does not do grad_input; far: runs on cuda only; "
    "plain: runs on cuda only;",
    "reasons when the forced one refuses": "plain: quick is forced; quick: only 3 x 3 filters; "
    "broken: does not do forward; far: runs on cuda only; plain: runs on cuda only;",
    # plain and quick both plan; then a hit plans nothing, and anything that changes plans again
    "plans: first": "2",
    "plans: again": "0",
    "plans: other threads": "2",
    "plans: other algorithm": "2",
    "plans: other device": "2",
    "plans: other device again": "0",
    "plans: forgotten": "2",
    "allocations in 1000 hits": "0",
    "wrong plans of 1024": "0",
    "hits of 1024 right after": "1024",
    "most of 64 cached": "yes",
    "bad problem": "fastconv: bad problem: stride_h is 0, expected at least 1",
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    program = tmp_path_factory.mktemp("selection") / "selection"
    compiler = shutil.which(os.environ.get("CXX") or "g++") or shutil.which("c++")
    assert compiler, "no C++ compiler: set CXX"
    core = [path for path in sorted((ROOT / "csrc/core").glob("*.cpp")) if path.name != "table.cpp"]
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-fsanitize=undefined", "-fno-sanitize-recover=all"]
    subprocess.run([compiler, *flags, *core, ROOT / "tests/cpp/selection.cpp", "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(line.split(" = ", 1) if " = " in line else line.split(" =", 1) for line in done.stdout.splitlines())


def test_every_outcome_is_expected(outcomes):
    assert set(outcomes) == set(EXPECTED)


@pytest.mark.parametrize("case", EXPECTED)
def test_outcome(outcomes, case):
    assert outcomes[case].strip() == EXPECTED[case]


# --- the selector over the real table --------------------------------------------------------------------


def test_the_table_is_well_formed():
    assert CONV_ROWS
    names = [(row["kind"], row["name"], row["device"]) for row in ROWS]
    assert len(set(names)) == len(names)
    for row in ROWS:
        assert row["passes"] and row["dtypes"] and row["summary"]
        assert (ROOT / "csrc" / row["source"]).is_file(), row["source"]


def conv_cases():
    for row in CONV_ROWS:
        for pass_name in row["passes"]:
            for dtype in row["dtypes"]:
                text = CONV.replace("f32", dtype).replace("fwd", WORD_OF_PASS[pass_name])
                yield pytest.param(row, text, id=f"{row['name']}-{pass_name}-{dtype}")


@pytest.mark.parametrize("row, text", list(conv_cases()))
def test_a_forced_row_runs_what_it_supports(row, text):
    answer = next(a for a in _C.explain(text, 2, row["name"]) if (a["name"], a["device"]) == (row["name"], "cpu"))
    if answer["ok"]:
        assert answer["chosen"] and answer["reason"].endswith("forced")  # after the form, for a row that has several
        assert _C.select(text, 2, row["name"])["name"] == row["name"]
    else:
        with pytest.raises(RuntimeError) as error:
            _C.select(text, 2, row["name"])
        assert f"{row['name']} (cpu): {answer['reason']}" in str(error.value)


@pytest.mark.parametrize("threads", [1, 2, 16])
@pytest.mark.parametrize("word", WORD_OF_PASS.values())
def test_auto_takes_the_cheapest(threads, word):
    text = CONV.replace("fwd", word)
    answers = _C.explain(text, threads)
    rows = [row for row in ROWS if row["kind"] == "conv" and row["device"] != "simulated"]
    assert [(a["name"], a["device"]) for a in answers] == [(row["name"], row["device"]) for row in rows]
    able = [a for a in answers if a["ok"]]
    assert all(a["cost"] > 0 for a in able)
    chosen = [a for a in answers if a["chosen"]]
    assert len(chosen) == 1 and chosen[0]["cost"] == min(a["cost"] for a in able)
    plan = _C.select(text, threads)
    assert {key: plan[key] for key in ("name", "cost", "workspace_bytes")} == {
        key: chosen[0][key] for key in ("name", "cost", "workspace_bytes")
    }
    assert 1 <= plan["threads"] <= threads


@pytest.mark.parametrize("call", [_C.select, _C.explain])
def test_an_unknown_algorithm_is_an_error_that_lists_the_known(call):
    with pytest.raises(RuntimeError) as error:
        call(CONV, 1, "magic")
    known = list(dict.fromkeys(["auto", *(row["name"] for row in ROWS if row["kind"] == "conv")]))
    assert str(error.value) == f"fastconv: unknown algorithm 'magic'; known are: {', '.join(known)}"


@pytest.mark.parametrize(
    "text",
    [
        CONV.replace("f32", "i16"),
        CONV.replace("f32", "i16").replace("fwd", "grad_weight"),
        "maxpool n1c2h8w8 r2s2 st2 pd0 dl1 i16 nchw fwd",
        "avgpool n1c2h8w8 r2s2 st2 pd0 dl1 i16 nchw fwd",
    ],
)
def test_a_refusal_lists_every_row_with_its_reason(text):
    # No GPU row takes i16, so on that device nothing is left.
    kind = "conv" if text.startswith("conv") else "pool"
    with pytest.raises(RuntimeError) as error:
        _C.select(text, 1, "auto", "cuda")
    answers = _C.explain(text, 1, "auto", "cuda")
    assert not any(a["ok"] or a["chosen"] for a in answers) and all(a["reason"] for a in answers)
    reasons = "; ".join(f"{a['name']} ({a['device']}): {a['reason']}" for a in answers)
    assert str(error.value) == f"fastconv: no algorithm for {text}: {reasons}"
    assert len(answers) == sum(row["kind"] == kind and row["device"] != "simulated" for row in ROWS)


def test_bad_arguments():
    for threads in (0, -1):
        with pytest.raises(ValueError, match="expected 1 or more"):
            _C.select(CONV, threads)
    with pytest.raises(ValueError, match="unknown device 'tpu'"):
        _C.explain(CONV, 1, "auto", "tpu")
    with pytest.raises(ValueError, match="bad problem text"):
        _C.explain("conv n1", 1)


# --- the plan cache --------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [CONV, "conv n32c64h56w56 k128r3s3 st1 pd1 dl1 g1 bf16 nhwc fwd bias relu"])
@pytest.mark.parametrize("threads", [1, 16])
def test_a_cached_selection_costs_at_most_a_microsecond(text, threads):
    assert min(_C.selection_seconds(text, threads, 10000) for _ in range(5)) <= 1e-6


@pytest.fixture
def best_isa():
    before = _C.cpu_isa()
    yield _C.cpu_isas()[-1]
    _C.set_cpu_isa(before)


def chosen_by_explain(text):
    """explain() never caches."""
    return next(a for a in _C.explain(text) if a["chosen"])


def test_plans_follow_the_isa_in_every_thread(best_isa):
    # Enough work for the cost of every ISA to differ.
    text = "conv n1c64h28w28 k64r3s3 st1 pd1 dl1 g1 f32 nchw fwd"
    costs = {}
    with ThreadPoolExecutor(1) as other:
        for isa in ("scalar", best_isa, "scalar"):
            _C.set_cpu_isa(isa)
            assert _C.cpu_isa() == isa
            costs[isa] = chosen_by_explain(text)["cost"]
            assert _C.select(text)["cost"] == costs[isa]
            assert other.submit(_C.select, text).result()["cost"] == costs[isa]
    assert len(set(costs.values())) == len(costs)  # else nothing above could fail


def test_plans_for_an_isa_that_is_not_in_use_do_not_run():
    """What a record of another machine is held against; the kernels of this one would not fit such plans."""
    text = "conv n1c64h28w28 k64r3s3 st1 pd1 dl1 g1 f32 nchw fwd"
    before, costs = _C.processor(), set()
    assert before["other_isa"] is None
    x, weight = torch.randn(1, 64, 28, 28), torch.randn(64, 64, 3, 3)
    try:
        for isa in ("scalar", "avx2", "avx512"):
            _C.set_processor(**{**before, "other_isa": isa})
            assert _C.processor()["other_isa"] == isa
            costs.add(chosen_by_explain(text)["cost"])
            for call in (lambda: fastconv.functional.conv2d(x, weight), lambda: fastconv.functional.max_pool2d(x, 2)):
                with pytest.raises(RuntimeError, match=f"plans are made for {isa} now, for tests"):
                    call()
        with pytest.raises(RuntimeError, match="there is no instruction set altivec"):
            _C.set_processor(**{**before, "other_isa": "altivec"})
    finally:
        _C.set_processor(**before)
    assert len(costs) == 3
    assert fastconv.functional.conv2d(x, weight).shape == (1, 64, 26, 26)


def test_an_unusable_isa_is_refused(best_isa):
    before = _C.cpu_isa()
    with pytest.raises(RuntimeError, match="not usable here; usable are: scalar"):
        _C.set_cpu_isa("altivec")
    assert _C.cpu_isa() == before


def test_build_info():
    info = _C.build_info()
    assert info["torch"] == torch.__version__.split("+")[0]
    assert info["cxx_standard"] >= 201703
    assert set(_C.cpu_isas()) <= set(info["cpu_isas"])
    assert info["compiler"] and isinstance(info["cuda"], bool)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("sizes", ["n1c0h4w4 k4r1s1", "n1c4h4w4 k0r1s1", "n2c0h4w4 k4r3s3"])
def test_problems_without_channels_or_filters_are_refused_in_words(sizes, layout):
    answers = _C.explain(f"conv {sizes} st1 pd0 dl1 g1 f32 {layout} fwd", 1)
    for candidate in (a for a in answers if a["device"] == "cpu"):
        assert not candidate["ok"] and "nothing to compute" in candidate["reason"]
