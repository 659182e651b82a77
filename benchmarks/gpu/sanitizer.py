"""`python -m benchmarks.gpu.sanitizer memcheck --out FOLDER`: the tests of the CUDA rows under compute-sanitizer.

A tool is believed only if it finds its bug planted in tests/cuda/sanitizer_control.cu and nothing in sound code: some
machines' drivers and virtual machines refuse it, or let it see nothing. Exit status: 0, nothing found; 1, errors or
failed tests; findings.UNAVAILABLE (3), the tool is missing or does not work here, so that nothing was checked.
"""

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys

from build_tools import facts

from .findings import UNAVAILABLE

TOOLS = ("memcheck", "racecheck", "synccheck")
ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
_FOUND = 86  # the tool's exit status if it found something
_CONTROL_SECONDS = 60.0


class Unavailable(Exception):
    """The tool cannot be used here; the text says why."""


def find_tool():
    """The path of compute-sanitizer: on PATH, beside nvcc, or in the toolkit's own folder."""
    nvcc, _ = facts.find_nvcc()
    toolkits = [pathlib.Path(nvcc).resolve().parent.parent] if nvcc else []
    toolkits.append(pathlib.Path("/usr/local/cuda"))
    folders = [str(toolkit / name) for toolkit in toolkits for name in ("bin", "compute-sanitizer")]
    tool = shutil.which("compute-sanitizer", path=os.pathsep.join([os.environ.get("PATH", ""), *folders]))
    if tool is None:
        raise Unavailable("there is no compute-sanitizer, on PATH or beside nvcc")
    return tool


def build_control(folder):
    """Compile the planted bugs; the program's path."""
    nvcc, _ = facts.find_nvcc()
    if nvcc is None:
        raise Unavailable("there is no nvcc to compile its planted bugs with")
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "sanitizer_control"
    words = [nvcc, "-std=c++17", "-lineinfo", "-arch=native", str(ROOT / "tests/cuda/sanitizer_control.cu")]
    done = subprocess.run([*words, "-o", str(program)], capture_output=True, text=True)
    if done.returncode != 0:
        raise Unavailable(f"its planted bugs do not compile: {(done.stdout + done.stderr).strip()[:500]}")
    return program


def _tool_words(compute_sanitizer, tool):
    # API errors: torch probes for what a driver can do and handles the refusals, which are no errors of ours.
    api = ["--report-api-errors", "no"] if tool == "memcheck" else []
    return [compute_sanitizer, "--tool", tool, *api, "--error-exitcode", str(_FOUND), "--print-limit", "20"]


def believe(compute_sanitizer, tool, program):
    """Raise Unavailable unless the tool lets sound code pass and finds its planted bug."""
    for bug, expected in (("none", 0), (tool, _FOUND)):
        words = [*_tool_words(compute_sanitizer, tool), str(program), bug]
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=_CONTROL_SECONDS)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Unavailable(f"{type(error).__name__} on its planted bugs: {error}") from None
        output = (done.stdout + done.stderr).strip()
        print(f"$ {' '.join(words)}\n{output}\nexit status {done.returncode}", flush=True)
        if done.returncode != expected:
            what = "misses its planted bug" if bug != "none" else "does not run sound code"
            telling = next((line for line in output.splitlines() if re.search("error|not supported", line, re.I)), "")
            raise Unavailable(f"{tool} {what} (exit status {done.returncode}) {telling}".strip())


def selection(quick):
    """pytest's -k: every row once, on small problems; in bfloat16, which takes tensor cores and asynchronous copies."""
    dtypes = "-bf16]" if quick else "(-bf16] or -f32])"
    return f"(test_small_problems or test_pools) and {dtypes}"


def clean(output):
    """Whether the tool's own summary says that nothing was found; None if there is no summary."""
    summaries = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (?:errors?|hazards?)", output)
    return all(count == "0" for count in summaries) if summaries else None


def run_tests(compute_sanitizer, tool, out, quick):
    """Exit status 0 or 1, or Unavailable."""
    report, pattern = out / f"sanitizer-{tool}.xml", f"compute-{tool}-%p.log"  # %p: a log for each process
    for path in (report, *out.glob(pattern.replace("%p", "*"))):
        path.unlink(missing_ok=True)
    words = [*_tool_words(compute_sanitizer, tool), "--target-processes", "all", "--log-file", str(out / pattern)]
    words += [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
    words += ["tests/test_cuda_rows.py", "--require-gpu", "-k", selection(quick)]
    print(f"$ {' '.join(words)}", flush=True)
    status = subprocess.run(words, cwd=ROOT).returncode
    logs = sorted(out.glob(pattern.replace("%p", "*")))
    output = "\n".join(log.read_text(errors="replace") for log in logs)
    print(output[:20000], flush=True)
    verdict = clean(output)
    if verdict is None and status == 0:
        raise Unavailable(f"{tool} gave no summary of the tests' process, so that nothing shows that it watched")
    return 0 if status == 0 and verdict else 1


def main(argv=None):
    top = argparse.ArgumentParser(prog="python -m benchmarks.gpu.sanitizer", description=__doc__)
    top.add_argument("tool", choices=TOOLS)
    top.add_argument("--out", type=pathlib.Path, required=True, metavar="FOLDER", help="for the log and the report")
    top.add_argument("--quick", action="store_true", help="one dtype instead of two")
    options = top.parse_args(argv)
    try:
        compute_sanitizer = find_tool()
        believe(compute_sanitizer, options.tool, build_control(ROOT / "build" / "gpu-check"))
        return run_tests(compute_sanitizer, options.tool, options.out, options.quick)
    except Unavailable as reason:
        print(f"unavailable: compute-sanitizer: {reason}")
        return UNAVAILABLE


if __name__ == "__main__":
    sys.exit(main())
