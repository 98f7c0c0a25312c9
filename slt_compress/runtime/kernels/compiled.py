"""Compile the programs for this machine, once per process, and run jobs on torch's threads."""

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
    """The workers by name, each with its address; the engine owns their code."""

    engine: Any
    workers: Mapping[str, tuple[Callable[[Any], None], int]]


def run(name: str, work: int, items: int, *fields: int) -> None:
    """Run all items of a job on as many threads as torch may use.

    Args:
        name: of the worker, see `programs.program`.
        work: multiply-adds of the job.
        items: how many items it has.
        fields: the other fields of the job, from `Field.INPUTS` on; the remaining ones are 0.
    """
    worker, address = _compiled().workers[name]
    job = _JOB(0, items, *fields)
    threads = min(torch.get_num_threads(), items) if work > _ALONE else 1
    team = _team() if threads > 1 else None
    if team is None:
        worker(job)
    else:
        team(address, ctypes.addressof(job), threads, 0)


@cache
def _compiled() -> _Compiled:
    from llvmlite import binding

    from slt_compress.runtime.kernels.programs import program

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    module = binding.parse_assembly(program())
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
    addresses = {name: engine.get_function_address(name) for name in names}
    return _Compiled(engine, {name: (_WORKER(place), place) for name, place in addresses.items()})


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
