"""Build of the Cython kernels; everything else is in pyproject.toml.

`kernels/` is mapped to the package `dzedge.kernels`, and Cython finds a sibling's `.pxd` only through a
folder tree of the package's own shape: `build/cimport/dzedge/kernels -> kernels` is that tree.
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

ROOT = Path(__file__).resolve().parent
# -ffp-contract=off: a fused multiply-add differs between x86-64 and aarch64 and would break bit-exact replay.
# Never -ffast-math, -Ofast (they cannot see NaN) or -march=native.
FLAGS = ["-O3", "-g0", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "initializedcheck": False,
    "cdivision": True,
    "embedsignature": True,
}


def kernel_sources() -> list[str]:
    """`.pyx` kernels, and typed `.py` kernels: those with a `.pxd` beside them."""
    folder = Path("kernels")
    typed = [p.with_suffix(".py") for p in folder.glob("*.pxd")]
    return sorted(str(p) for p in [*folder.glob("*.pyx"), *typed] if p.exists())


def cimport_tree() -> str:
    tree = ROOT / "build" / "cimport"
    package = tree / "dzedge"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.pxd").touch()
    link = package / "kernels"
    if not link.is_symlink():
        link.symlink_to(os.path.relpath(ROOT / "kernels", package))
    return str(tree)


def extension(source: str) -> Extension:
    return Extension(f"dzedge.kernels.{Path(source).stem}", [source], extra_compile_args=FLAGS)


setup(
    ext_modules=cythonize(
        [extension(source) for source in kernel_sources()],
        include_path=[cimport_tree()],
        build_dir="build/cython",
        compiler_directives=DIRECTIVES,
        nthreads=0,
    )
)
