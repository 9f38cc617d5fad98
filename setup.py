"""Build the optional extension ``weit_kernels._C``; everything else is in pyproject.toml.

WEIT_SKIP_BUILD=1                never build it
WEIT_FORCE_BUILD=1               a build that is impossible or fails is an error instead of one line of notice
WEIT_SANITIZE=address,undefined  build with GCC's sanitizers, to run the tests under
MAX_JOBS, TORCH_CUDA_ARCH_LIST   honoured, as in torch.utils.cpp_extension
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from setuptools import setup

SKIP = os.environ.get("WEIT_SKIP_BUILD", "0") not in ("", "0")
FORCE = os.environ.get("WEIT_FORCE_BUILD", "0") not in ("", "0")
# The other commands (metadata, source archive) compile nothing and have nothing to announce.
COMPILING = {"bdist_wheel", "build", "build_ext", "develop", "editable_wheel", "install"}


def say(line: str) -> None:
    print(f"weit: {line}", file=sys.stderr, flush=True)  # pip shows it with -v


def skip(reason: str) -> dict[str, Any]:
    """No extension, and the reason said aloud."""
    if FORCE:
        raise SystemExit(f"weit: WEIT_FORCE_BUILD is set, but the extension cannot be built: {reason}")
    say(f"compiled extension skipped, the package works without it: {reason}")
    return {}


def why_no_cuda(torch: Any, cuda_home: str | None) -> str | None:
    """The reason why the CUDA sources cannot be built here; None where they can."""
    if torch.version.cuda is None:
        return "this torch has no CUDA"
    if cuda_home is None or not (nvcc := Path(cuda_home, "bin", "nvcc")).exists():
        return "nvcc not found; CUDA_HOME names its toolkit"
    release = re.search(r"release (\d+)\.", subprocess.check_output([nvcc, "--version"], text=True))
    if release is None or release[1] != torch.version.cuda.split(".")[0]:
        return f"nvcc is of CUDA {release[1] if release else '?'}, torch of CUDA {torch.version.cuda}"
    return None


def openmp(torch_lib: Path) -> list[str]:
    """Linker flags for the OpenMP library that torch itself runs on; a second copy would be a second pool of threads."""
    bundled = sorted(torch_lib.glob("libgomp*.so*"))
    return [str(bundled[0])] if bundled else ["-fopenmp"]


def extension() -> dict[str, Any]:
    """Arguments to ``setup`` that build the extension, or none of them where it cannot be built."""
    if SKIP and FORCE:
        raise SystemExit("weit: WEIT_SKIP_BUILD and WEIT_FORCE_BUILD are both set; set one")
    if SKIP:
        return skip("WEIT_SKIP_BUILD is set")
    csrc = Path("csrc")
    sources = [*csrc.glob("*.cpp"), *csrc.glob("cpu/*.cpp")]
    if not sources:
        return skip("csrc/ holds no sources")
    try:
        import torch
        from torch.utils import cpp_extension
    except (ImportError, OSError) as error:
        return skip(f"torch cannot be imported here ({error}); with it installed, use --no-build-isolation")
    compiler = cpp_extension.get_cxx_compiler()
    if shutil.which(compiler.split()[0]) is None:
        return skip(f"no C++ compiler: {compiler} is not on the path; CXX names another")

    kind, macros = cpp_extension.CppExtension, []
    if cuda_sources := list(csrc.glob("cuda/*.cu")):
        if reason := why_no_cuda(torch, cpp_extension.CUDA_HOME):
            say(f"CUDA part of the extension skipped: {reason}")
        else:
            kind, macros, sources = cpp_extension.CUDAExtension, [("WEIT_CUDA", None)], sources + cuda_sources

    class BuildExtension(cpp_extension.BuildExtension):
        def build_extensions(self) -> None:
            try:
                super().build_extensions()
            except Exception as error:  # whatever the compiler, ninja or torch's own checks raise
                if FORCE:
                    raise
                skip(f"the build failed: {str(error).splitlines()[0]}")

    # No -march: csrc/cpu holds kernels for several instruction sets and picks one when it runs.
    flags, links = ["-O3", "-fopenmp"], openmp(Path(torch.__file__).parent / "lib")
    if sanitizers := os.environ.get("WEIT_SANITIZE"):
        flags += [f"-fsanitize={sanitizers}", "-fno-omit-frame-pointer"]
        links += [f"-fsanitize={sanitizers}"]
    module = kind(
        "weit_kernels._C",
        sorted(map(str, sources)),
        include_dirs=[str(csrc.resolve())],
        define_macros=macros,
        depends=sorted(str(header) for header in csrc.rglob("*.[hc]*")),
        extra_compile_args={"cxx": flags, "nvcc": ["-O3"]},
        extra_link_args=links,
        optional=True,  # a module that was not built is not installed either; FORCE raised before
    )
    return {"ext_modules": [module], "cmdclass": {"build_ext": BuildExtension}}


setup(**(extension() if COMPILING.intersection(sys.argv) else {}))
