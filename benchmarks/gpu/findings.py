"""What the logs of gpu-check's steps say: tests by row, mismatched atoms, a sanitizer's verdict, the first errors."""

import json
import re
import xml.etree.ElementTree as ElementTree

_ERROR = re.compile(r"error\b|^E  |^FAILED|Traceback|refuse|mismatch|cannot ", re.I)
_HARMLESS = re.compile(r"0 (errors?|failed|mismatches)|-Werror|^\$ ")
_MOST_ERRORS, _MOST_LETTERS = 8, 300
UNAVAILABLE = 3  # exit status of benchmarks.gpu.sanitizer where the tool is missing or does not work


def first_errors(text):
    """The first lines of a log that look like errors; its last ones if none does."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    found = [line for line in lines if _ERROR.search(line) and not _HARMLESS.search(line)]
    return [line[:_MOST_LETTERS] for line in found[:_MOST_ERRORS] or lines[1:][-3:]]


def environment(outcome, log):
    """The facts that benchmarks.gpu.environment printed."""
    last = log.read_text(errors="replace").splitlines()[-1:]
    try:
        return {"facts": json.loads(last[0])} if outcome.exit == 0 else {}
    except (IndexError, ValueError):
        return {"status": "failed"}


def atoms(outcome, log):
    """The atoms that gave something else than their model: {"checked": how many, "errors": "name: what differs"}."""
    said = re.findall(r"^([a-z][\w.]*): (.+)$", log.read_text(errors="replace"), re.M)
    checked = [line for line in said if line[0] not in ("error", "make", "nvcc")]
    wrong = [f"{name}: {what}" for name, what in checked if what != "ok"]
    if outcome.exit == 0:
        return {"checked": len(checked), **({} if checked and not wrong else {"status": "failed"})}
    return {"checked": len(checked), **({"errors": wrong} if wrong else {})}


# Tests


def junit(path):
    """[{"test", "result": "passed" | "failed" | "skipped", "message"}] of a JUnit report; None if there is none."""
    try:
        cases = ElementTree.parse(path).iter("testcase")
    except (OSError, ElementTree.ParseError):
        return None
    found = []
    for case in cases:
        children = {child.tag: child for child in case}
        wrong = next((children[tag] for tag in ("failure", "error") if tag in children), None)
        result = "failed" if wrong is not None else "skipped" if "skipped" in children else "passed"
        message = (wrong.get("message") or wrong.text or "").strip() if wrong is not None else ""
        name = f"{case.get('classname', '')}::{case.get('name', '')}".removeprefix("tests.")
        found.append({"test": name, "result": result, "message": message})
    return found


def _first_line(message):
    return message.splitlines()[0][:_MOST_LETTERS] if message else ""


def tests(outcome, report):
    """Counts, and the first failures: "test: the first line of its message"."""
    cases = junit(report)
    if cases is None:
        return {"status": "timed out" if outcome.timed_out else "failed", "errors": ["pytest left no report"]}
    counts = {word: sum(case["result"] == word for case in cases) for word in ("passed", "failed", "skipped")}
    failed = [f"{case['test']}: {_first_line(case['message'])}" for case in cases if case["result"] == "failed"]
    findings = {"counts": counts}
    if failed:
        findings |= {"status": "timed out" if outcome.timed_out else "failed", "errors": failed[:_MOST_ERRORS]}
    return findings


def kinds(root):
    """{row: "conv" or "pool"} of the CUDA rows in csrc/core/algorithms.inc, in its order."""
    text = (root / "csrc/core/algorithms.inc").read_text()
    return {row: kind.lower() for kind, row in re.findall(r"FASTCONV_GPU_(CONV|POOL)_ROW\((\w+),", text)}


def concerned(test, known):
    """The rows that a test of test_cuda_rows.py counts for: the one that it names, or all that it runs.

    A test of all rows does not tell which ones it never reached, so that its failure counts against each.
    """
    name, _, parameters = test.partition("::")[2].partition("[")
    named = [row for row in known if row in parameters.rstrip("]").split("-")]
    if named:
        return named
    convolutions = name.startswith(("test_real_sizes", "test_any_problem"))
    return [row for row, kind in known.items() if kind == "conv" or not convolutions]


def by_row(cases, known):
    """{row: {"passed", "failed", "skipped", "own" (how many name the row)}}"""
    found = {row: {"passed": 0, "failed": 0, "skipped": 0, "own": 0} for row in known}
    for case in cases or ():
        rows = concerned(case["test"], known)
        for row in rows:
            found[row][case["result"]] += 1
            found[row]["own"] += len(rows) == 1
    return found


def rows(outcome, report, known):
    """As `tests`, with "rows" and "complete": whether every test was run, so that a row's count says something.

    With --require-gpu nothing has a reason to be skipped: what is, was not tested.
    """
    findings = tests(outcome, report)
    if outcome.exit == 0 and findings.get("counts", {}).get("skipped"):
        findings |= {"status": "failed", "errors": [f"{findings['counts']['skipped']} tests were skipped"]}
    cases = junit(report)
    complete = cases is not None and outcome.exit in (0, 1) and not outcome.timed_out  # pytest's 2: interrupted
    return {**findings, "complete": complete, "rows": by_row(cases, known)}


def row_results(found, known):
    """{row: counts and "passed_all"} from the findings of the steps "rows:...", {step: findings}.

    A row passed if all of its tests and all shared ones were run and passed, and some were its own.
    """
    results = {}
    for row in known:
        parts = [found.get(f"rows:{row}"), found.get("rows:shared")]
        counts = {word: 0 for word in ("passed", "failed", "skipped", "own")}
        for part in parts:
            for word in counts:
                counts[word] += (part or {}).get("rows", {}).get(row, {}).get(word, 0)
        complete = all(part is not None and part.get("complete") for part in parts)
        passed = complete and counts["own"] > 0 and not counts["failed"] and not counts["skipped"]
        results[row] = {**counts, "complete": complete, "passed_all": passed}
    return results


# Sanitizer


def sanitizer(outcome, log, report, known):
    """The tool's verdict: passed only if it is seen to work, found nothing, and ran a passing test of every row."""
    if outcome.exit == UNAVAILABLE:
        said = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("unavailable: ")]
        return {"status": "unavailable", "errors": said[:1]}
    findings = tests(outcome, report)
    seen = by_row(junit(report), known)
    findings["rows"] = [row for row in known if seen[row]["passed"]]
    if outcome.exit == 0 and len(findings["rows"]) < len(known):
        missing = ", ".join(row for row in known if row not in findings["rows"])
        return {**findings, "status": "failed", "errors": [f"no test ran under the tool for {missing}"]}
    hazards = re.findall(r"^=+ (.*(?:Invalid|Race reported|Divergent|hazard|Barrier error|SUMMARY).*)$",
                         log.read_text(errors="replace"), re.M)  # fmt: skip
    if outcome.exit not in (0, None) and hazards:
        findings["errors"] = [*hazards[: _MOST_ERRORS // 2], *findings.get("errors", [])][:_MOST_ERRORS]
    return findings


def speed(outcome, path):
    """How many problems were timed and which checks failed, of speed.json."""
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError):
        return {"status": "timed out" if outcome.timed_out else "failed"}
    rows = [row for row in data["rows"] if row["side"] == "fastconv"]
    findings = {"measured": len(rows), "stopped_by": data["stopped_by"]}
    if data["failed"]:
        findings["errors"] = [f"{line['algorithm']}, {line['problem']}: {line['why']}" for line in data["failed"]]
        findings["errors"] = findings["errors"][:_MOST_ERRORS]
    if not rows:
        findings["status"] = "failed"
    return findings
