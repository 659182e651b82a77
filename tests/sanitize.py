"""python -m tests.sanitize: the CUDA rows in the emulator under AddressSanitizer and UndefinedBehaviorSanitizer.

The problems of test_gpu_rows.py and test_pool_rows.py, every row, pass and dtype, on operands of exactly their size
(tests/cuda/sanitized_main.cpp). Ends with the sanitizer's report and its status at the first finding.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # as pytest does

from build_tools import builder  # noqa: E402


def lines():
    import pool_kernels
    import test_gpu_rows as gpu

    for dtype in gpu.DTYPES:
        for name in gpu.CONV_ROWS:
            for _, text in gpu.cases(name, dtype, gpu.SHAPES + gpu.TILES):
                yield f"{name} {text}"
                yield f"{name} {text.replace(' nchw ', ' x:nhwc w:nchw y:nchw ')}"
        for name in gpu.POOL_ROWS:
            for pass_ in ("fwd", "grad_input", "gather") if name == "max_pool" else ("fwd", "grad_input"):
                for layout in ("nchw", "nhwc"):
                    for text in pool_kernels.texts(name, pass_, dtype, layout):
                        yield f"{name} {text}"


def main():
    program = builder.build_sanitized(ROOT, say=lambda text: None)
    problems = list(lines())
    done = subprocess.run([program], input="\n".join(problems), stdout=subprocess.PIPE, text=True)
    answers = done.stdout.splitlines()
    ran = answers.count("ok")
    print(f"{ran} problems ran under the sanitizers, {len(answers) - ran} were refused in words")
    if done.returncode != 0 or len(answers) != len(problems):
        sys.exit(f"failed at: {problems[min(len(answers), len(problems) - 1)]}")


if __name__ == "__main__":
    main()
