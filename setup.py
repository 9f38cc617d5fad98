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
    try:
        release = re.search(r"release (\d+)\.(\d+)", subprocess.check_output([nvcc, "--version"], text=True))
    except (OSError, subprocess.CalledProcessError) as error:
        return f"nvcc does not run: {error}"
    if release is None or release[1] != torch.version.cuda.split(".")[0]:
        return f"nvcc is of CUDA {release[1] if release else '?'}, torch of CUDA {torch.version.cuda}"
    if (int(release[1]), int(release[2])) < (12, 5):
        return f"the kernels need CUDA 12.5, nvcc is of CUDA {release[1]}.{release[2]}"
    if not cuda_architectures(cuda_home):
        return f"the kernels need GPUs from 8.0 on; TORCH_CUDA_ARCH_LIST is {os.environ.get('TORCH_CUDA_ARCH_LIST')!r}"
    return None


def cuda_architectures(cuda_home: str) -> list[str]:
    """nvcc's flags for the GPUs that the user names, or that the kernels are made for, as far as both know them."""
    known = subprocess.check_output([Path(cuda_home, "bin", "nvcc"), "--list-gpu-arch"], text=True).split()
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST") or "8.0 9.0 10.0 12.0+PTX"
    flags = []
    for major, minor, ptx in re.findall(r"(\d+)\.(\d)a?(\+PTX)?", listed):
        number = major + minor
        if int(number) < 80 or f"compute_{number}" not in known:
            continue
        name = "90a" if number == "90" else number  # only sm_90a multiplies by groups of four warps
        flags.append(f"-gencode=arch=compute_{name},code=sm_{name}")
        if ptx:
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


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
    sources = [*csrc.glob("bindings.cpp"), *csrc.glob("cpu/*.cpp")]
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

    kind, architectures = cpp_extension.CppExtension, []
    if cuda_sources := [*csrc.glob("bindings_cuda.cpp"), *csrc.glob("cuda/*.cu")]:
        if reason := why_no_cuda(torch, cpp_extension.CUDA_HOME):
            say(f"CUDA part of the extension skipped: {reason}")
        else:
            kind, sources = cpp_extension.CUDAExtension, sources + cuda_sources
            architectures = cuda_architectures(cpp_extension.CUDA_HOME)

    class BuildExtension(cpp_extension.BuildExtension):
        def build_extensions(self) -> None:
            (module,) = self.extensions
            module.optional = False  # of an optional one setuptools swallows what the linker says
            try:
                super().build_extensions()
            except Exception as error:  # whatever the compiler, ninja or torch's own checks raise
                if FORCE:
                    raise
                reason = f"the build failed: {str(error).splitlines()[0]}"
                cpu_sources = [source for source in module.sources if "cuda" not in source]
                if module.sources == cpu_sources:
                    skip(reason)
                    return
                say(f"CUDA part of the extension skipped: {reason}")
                module.sources = cpu_sources
                module.libraries = [library for library in module.libraries if "cud" not in library]
                self.build_extensions()
            finally:
                module.optional = True  # one that was not built is not installed either; FORCE raised before

    # No -march: csrc/cpu holds kernels for several instruction sets and picks one when it runs.
    flags, links = ["-O3", "-fopenmp"], openmp(Path(torch.__file__).parent / "lib")
    if sanitizers := os.environ.get("WEIT_SANITIZE"):
        flags += [f"-fsanitize={sanitizers}", "-fno-omit-frame-pointer"]
        links += [f"-fsanitize={sanitizers}"]
    module = kind(
        "weit_kernels._C",
        sorted(map(str, sources)),
        include_dirs=[str(csrc.resolve()), str((csrc / "cuda").resolve())],
        depends=sorted(str(header) for header in csrc.rglob("*.[hc]*")),
        extra_compile_args={"cxx": flags, "nvcc": ["-O3", "-std=c++17", *architectures]},
        extra_link_args=links,
    )
    return {"ext_modules": [module], "cmdclass": {"build_ext": BuildExtension}}


setup(**(extension() if COMPILING.intersection(sys.argv) else {}))
