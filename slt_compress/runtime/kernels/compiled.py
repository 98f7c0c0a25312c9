"""Compile the programs for this machine, each when it is first used, and run jobs on threads."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch

from slt_compress.runtime.kernels.job_layout import Field

_JOB = ctypes.c_int64 * len(Field)
# Its argument is an array, which ctypes passes by address.
_WORKER = ctypes.CFUNCTYPE(None, ctypes.POINTER(ctypes.c_int64))
# Below this many multiply-adds, waking a second thread costs more than it saves.
_ALONE = 1 << 20


def can_compile() -> bool:
    """Whether llvmlite, the extra `fast`, is installed."""
    return find_spec("llvmlite") is not None


def has_team() -> bool:
    """Whether jobs can run on several threads; see `_team`."""
    return _team() is not None


@dataclass(frozen=True, slots=True)
class _Compiled:
    """The workers of a kind by width, each with its address; the engine owns their code."""

    engine: Any
    workers: Mapping[int, tuple[Callable[[Any], None], int]]


def threads_for(work: int) -> int:
    """How many threads a job of so many multiply-adds is worth."""
    return torch.get_num_threads() if work > _ALONE and _team() is not None else 1


def run(kind: str, width: int, threads: int, items: int, fields: Mapping[Field, int]) -> None:
    """Run all items of a job.

    Args:
        kind, width: of the worker, see `programs.program`.
        threads: as `threads_for` says.
        items: how many items it has.
        fields: the other fields of the job; those that are not given are 0.
    """
    worker, address = _compiled(kind).workers[width]
    job = _JOB(0, 0, items)
    for field, value in fields.items():
        job[field] = value
    threads = min(threads, items)
    team = _team() if threads > 1 else None
    if team is None:
        worker(job)
    else:
        team(address, ctypes.addressof(job), threads, 0)


def precisions() -> tuple[str, ...]:
    """The lower precisions for which this processor has instructions, the fastest last."""
    has = _features()
    named = {"bf16": has.get("avx512bf16", False), "int8": _has_vnni(has)}
    return tuple(name for name, there in named.items() if there)


def widest() -> int:
    """Lanes of 32 bits in the widest vectors of this processor."""
    has = _features()
    return 16 if has.get("avx512f") else 8 if has.get("avx2") else 4


@cache
def _features() -> Mapping[str, bool]:
    from llvmlite import binding

    return dict(binding.get_host_cpu_features())


def _has_vnni(has: Mapping[str, bool]) -> bool:
    return bool(has.get("avx512vnni") and has.get("avx512vl")) or bool(has.get("avxvnni"))


@cache
def _compiled(kind: str) -> _Compiled:
    from llvmlite import binding

    from slt_compress.runtime.kernels.dots import Features
    from slt_compress.runtime.kernels.programs import program

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    named = precisions()
    features = Features(bf16="bf16" in named, vnni="int8" in named)
    module = binding.parse_assembly(program(kind, features, widest()))
    module.verify()
    machine = binding.Target.from_default_triple().create_target_machine(
        cpu=binding.get_host_cpu_name(),
        features=binding.get_host_cpu_features().flatten(),
        opt=3,
        jit=True,
    )
    engine = binding.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    names = [function.name for function in module.functions if not function.is_declaration]
    addresses = {int(n.rpartition("_")[2]): engine.get_function_address(n) for n in names}
    return _Compiled(engine, {width: (_WORKER(at), at) for width, at in addresses.items()})


@cache
def _team() -> Any | None:
    """The function that runs another one on a team of threads, in the OpenMP library of torch.

    The kernel's threads are then torch's own and do not compete with them. None if torch was built
    with an OpenMP library other than GNU's; then one thread does all the work.
    """
    try:
        parallel = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):
        return None
    # void GOMP_parallel(void (*fn)(void *), void *data, unsigned threads, unsigned flags)
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    return parallel
