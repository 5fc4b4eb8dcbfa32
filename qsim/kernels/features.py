"""Which paths this CPU can run, found out before anything is compiled.

LLVM ends the process, without an exception, when it is asked for an instruction that its target lacks. So a path is
offered only if the features that Numba will compile for have it, `NUMBA_CPU_NAME` and `NUMBA_CPU_FEATURES` included.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from functools import lru_cache
from typing import Any

from qsim.errors import QsimError

PATHS = ("portable", "vnni", "bf16", "amx")
VARIABLE = "QSIM_KERNELS"

_NEEDS = {
    "portable": (),
    "vnni": ("avx512f", "avx512bw", "avx512vnni"),
    "bf16": ("avx512f", "avx512bw", "avx512vnni", "avx512bf16"),
    "amx": ("avx512f", "avx512bw", "avx512vnni", "avx512bf16", "amx-tile", "amx-int8", "amx-bf16"),
}
_ARCH_PRCTL, _REQ_XCOMP_PERM, _XTILEDATA = 158, 0x1023, 18  # Linux x86-64: arch_prctl(2), tile data of XSAVE


@lru_cache(maxsize=1)
def compiled_features() -> frozenset[str]:
    """Features that Numba compiles for: of this CPU, or of the environment's choice.

    A CPU named by `NUMBA_CPU_NAME` other than this one is taken to have none of the optional instructions, as is a list
    in `NUMBA_CPU_FEATURES` without them.
    """
    import llvmlite.binding as llvm
    from numba.core import config as numba_config

    config: Any = numba_config  # its names are made at run time
    if config.CPU_FEATURES is not None:
        signs = [f.strip() for f in config.CPU_FEATURES.split(",") if f.strip()]
        return frozenset(f[1:] for f in signs if f.startswith("+")) - {f[1:] for f in signs if f.startswith("-")}
    if config.CPU_NAME is not None and config.CPU_NAME != llvm.get_host_cpu_name():
        return frozenset()
    try:
        return frozenset(name for name, present in llvm.get_host_cpu_features().items() if present)
    except RuntimeError:  # a platform on which LLVM cannot tell
        return frozenset()


def has_wide_registers() -> bool:
    """Whether 16 lanes of 32 bits are one register, of 32: AVX-512. Others hold a quarter of that, or half."""
    return "avx512f" in compiled_features()


def _host_features() -> frozenset[str]:
    import llvmlite.binding as llvm

    try:
        return frozenset(name for name, present in llvm.get_host_cpu_features().items() if present)
    except RuntimeError:
        return frozenset()


@lru_cache(maxsize=1)
def _may_use_tiles() -> bool:
    """Ask the kernel for AMX's tile registers, which a process has to request. False where it refuses."""
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        return False
    try:
        return ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQ_XCOMP_PERM, _XTILEDATA) == 0
    except (OSError, AttributeError):
        return False


@lru_cache(maxsize=1)
def available_paths() -> tuple[str, ...]:
    """The paths this process can run, slowest first. `portable` always; `QSIM_KERNELS` caps the list.

    Raises:
        ValueError: `QSIM_KERNELS` is not the name of a path.
    """
    cap = os.environ.get(VARIABLE, "").strip().lower() or PATHS[-1]
    if cap == "auto":
        cap = PATHS[-1]
    if cap not in PATHS:
        raise QsimError(f"{VARIABLE} must be one of auto, {', '.join(PATHS)}: got {cap!r}")
    found = compiled_features() & _host_features()
    allowed = PATHS[: PATHS.index(cap) + 1]
    return tuple(p for p in allowed if found.issuperset(_NEEDS[p]) and (p != "amx" or _may_use_tiles()))


def check_path(path: str | None) -> str:
    """The path to use: the fastest available, or the one asked for.

    Raises:
        ValueError: unknown, or not available here; the message says which are.
    """
    here = available_paths()
    if path is None:
        return here[-1]
    if path not in PATHS:
        raise QsimError(f"kernel path must be one of {', '.join(PATHS)}: got {path!r}")
    if path not in here:
        raise QsimError(
            f"kernel path {path!r} needs the CPU features {', '.join(_NEEDS[path])} and {VARIABLE} to allow "
            f"it; available here: {', '.join(here)}"
        )
    return path
