"""Builds fastconv: pyproject.toml holds the metadata, build_tools/ the decisions and the ninja file.

Environment: FASTCONV_CUDA, FORCE_CUDA, TORCH_CUDA_ARCH_LIST, MAX_JOBS, CUDA_HOME, CXX, CXXFLAGS, LDFLAGS.
torch's BuildExtension is not used: it has no flags per file, which one kernel source per ISA needs.
"""

import os
import sys
from pathlib import Path

import setuptools
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # PEP 517 front ends do not put the source tree there

from build_tools import builder  # noqa: E402
from build_tools.switches import SwitchError, version_tuple  # noqa: E402

# pyproject.toml's `license = "..."` is a PEP 639 expression, which older ones reject with a riddle.
if version_tuple(setuptools.__version__) < (77,):
    sys.exit(
        f"fastconv: setuptools {setuptools.__version__} is too old: `{sys.executable} -m pip install 'setuptools>=77'`"
    )


class BuildWithNinja(build_ext):
    def run(self):
        build_py = self.get_finalized_command("build_py")
        if self.inplace or getattr(self, "editable_mode", False):
            package = Path(build_py.get_package_dir("fastconv"))
        else:
            package = Path(self.build_lib, "fastconv")
        try:
            builder.build(ROOT, [package], self.distribution.get_version())
        except SwitchError as error:
            sys.exit(f"\nfastconv: {error}\n")


os.chdir(ROOT)
setuptools.setup(
    ext_modules=[setuptools.Extension("fastconv._C", sources=[])],
    cmdclass={"build_ext": BuildWithNinja},
)
