"""Finds or makes the Python environment that `make` builds and runs in, and prints its interpreter's path.

The interpreter that runs this file is used if it has torch >= 2.10; what else is needed and missing is
installed for it, and no network is touched if nothing is. Otherwise .venv is made with the pinned torch and
requirements-dev.txt. Progress goes to stderr. Standard library alone, and plain syntax: an interpreter too
old for fastconv must be able to say so.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
REQUIREMENTS = os.path.join(ROOT, "requirements-dev.txt")
VENV = os.path.join(ROOT, ".venv")
MIN_PYTHON = (3, 10)
MIN_TORCH = (2, 10)
TORCH = "torch==2.13.0"
# Below these an active interpreter's own copy does not serve; all else serves in any version.
LEAST = {"setuptools": (77,), "numpy": (1, 26), "pytest": (7,)}


def say(text):
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def fail(text):
    say("\nfastconv: " + text + "\n")
    sys.exit(1)


def numbers(version):
    """'2.13.0+cpu' -> (2, 13, 0)"""
    return tuple(int(part) for part in re.match(r"\d*(?:\.\d+)*", version).group().split(".") if part)


def installed(name):
    """The version of an installed distribution as numbers, or None."""
    import importlib.metadata as metadata

    try:
        return numbers(metadata.version(name))
    except metadata.PackageNotFoundError:
        return None


def required(text, python=None):
    """requirements-dev.txt -> {name: 'name==version'} of those for this Python."""
    python = python or sys.version_info[:2]
    found = {}
    for line in text.splitlines():
        line = line.split("#")[0].strip()
        if not line:
            continue
        match = re.match(r"([\w.-]+)==([\w.]+)(?:\s*;\s*python_version\s*(<|>=)\s*\"(\d+)\.(\d+)\")?$", line)
        if not match:
            raise ValueError("requirements-dev.txt: cannot read %r" % line)
        name, version, relation, major, minor = match.groups()
        limit = (int(major), int(minor)) if relation else None
        if relation is None or (python < limit if relation == "<" else python >= limit):
            found[name] = name + "==" + version
    return found


def lacking(requirements, have=installed, on_path=shutil.which):
    """The names of `requirements` that are missing or older than LEAST; a ninja on PATH serves as well."""
    names = [name for name in requirements if (have(name) or (0,)) < LEAST.get(name, (0, 0))]
    return [name for name in names if name != "ninja" or not on_path("ninja")]


def pip(python, arguments, otherwise):
    command = [python, "-m", "pip", "install", "--disable-pip-version-check"]
    command += os.environ.get("PIP_ARGS", "").split() + arguments
    say("+ " + " ".join(command))
    if subprocess.call(command, stdout=sys.stderr) != 0:
        fail(otherwise)


def use_active(requirements):
    """Completes the running interpreter, which has torch."""
    names = lacking(requirements)
    if names:
        wanted = ["%s>=%s" % (n, ".".join(map(str, LEAST[n]))) if n in LEAST else n for n in names]
        pip(
            sys.executable,
            wanted,
            "pip could not install what %s lacks beside its torch: %s. Install these by hand, "
            "or run make with PYTHON=<another interpreter>." % (sys.executable, ", ".join(wanted)),
        )
    return sys.executable


def use_venv(text):
    """Makes .venv if it is not there or was made from other requirements or another Python."""
    python = os.path.join(VENV, "bin", "python")
    key = hashlib.sha256(("%s\n%s\n%s" % (sys.version, TORCH, text)).encode()).hexdigest()
    stamp = os.path.join(VENV, ".fastconv-requirements")
    if os.path.exists(stamp) and os.path.exists(python):
        with open(stamp) as file:
            if file.read() == key:
                return python
    say("fastconv: making .venv (%s has no torch >= %s)" % (sys.executable, ".".join(map(str, MIN_TORCH))))
    if subprocess.call([sys.executable, "-m", "venv", "--clear", VENV], stdout=sys.stderr) != 0:
        fail("%s -m venv failed: on Debian and Ubuntu, `apt-get install python3-venv`" % sys.executable)
    pip(
        python,
        [TORCH, "-r", REQUIREMENTS],
        "pip could not install %s and requirements-dev.txt into .venv. Without network: run make with "
        "PYTHON=<an interpreter that has torch>; PIP_ARGS=... reaches pip (e.g. --index-url)." % TORCH,
    )
    with open(stamp, "w") as file:
        file.write(key)
    return python


def main():
    if sys.version_info[:2] < MIN_PYTHON:
        fail(
            "%s is Python %d.%d, fastconv needs %d.%d or newer: run make with PYTHON=<a newer one>"
            % ((sys.executable,) + tuple(sys.version_info[:2]) + MIN_PYTHON)
        )
    with open(REQUIREMENTS) as file:
        text = file.read()
    if (installed("torch") or (0,)) >= MIN_TORCH:
        print(use_active(required(text)))
    else:
        print(use_venv(text))


if __name__ == "__main__":
    main()
