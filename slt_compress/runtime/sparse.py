"""Runtimes: what the layers of an opened model compute with."""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch
from torch import nn

from slt_compress.errors import SltError
from slt_compress.runtime.example_runs import error_of, runs_of
from slt_compress.runtime.kernel_plan import (
    PRECISIONS,
    RUNTIMES,
    SECONDS,
    KernelPlan,
    fit,
    recalled,
)
from slt_compress.runtime.kernels import can_compile
from slt_compress.runtime.opening import Opened
from slt_compress.runtime.remembered import Measured, memory_of


def run_on(
    opened: Opened,
    runtime: str,
    device: str | torch.device = "cpu",
    precision: str | None = None,
) -> nn.Module:
    """The model of an opened folder on a runtime and a device.

    `dense` is torch's own kernels on weights with zeros. With `sparse`, every sparse layer that has
    a sparse kernel uses it; with `auto`, every layer whose kernel was measured to be faster, for
    the token counts where it was. Both are for inference: parameters require no gradients. The
    attribute `slt_runtime` of the module says what each layer computes with, by name of the layer;
    under the empty name it says why `auto` could not compare the model as a whole. `slt_error` is
    the error of a lower precision, see `KernelPlan`. Layers that only compute with a kernel let go
    of their dense weight, which is rebuilt when something reads it.

    Warns:
        RuntimeWarning: `auto` could not compare the model as a whole.

    Raises:
        SltError: an unknown runtime or precision, `sparse` on another device than the CPU, or a
            precision with the runtime `dense` or on such a device.
    """
    if runtime not in RUNTIMES:
        raise SltError(f"unknown runtime {runtime!r}; known: {', '.join(RUNTIMES)}")
    module, on_cpu = opened.module, torch.device(device).type == "cpu"
    _check_precision(precision, runtime, device)
    if runtime == "sparse" and not on_cpu:
        raise SltError(
            f"the sparse runtime is for the CPU and not for {device}: unstructured zeros gain "
            "nothing there; load with runtime='dense'"
        )
    if runtime != "dense" and on_cpu:
        plan = fit_opened(opened, runtime, precision=precision or PRECISIONS[0])
        plan.put_on()
        module.requires_grad_(False)
        vars(module)["slt_runtime"] = dict(plan.reasons)
        vars(module)["slt_error"] = plan.error
        if plan.warning is not None:
            vars(module)["slt_runtime"][""] = plan.warning
            warnings.warn(plan.warning, RuntimeWarning, stacklevel=3)
        plan.pack()
    return module.to(device)


def _check_precision(precision: str | None, runtime: str, device: str | torch.device) -> None:
    if precision is None:
        return
    if precision not in PRECISIONS:
        raise SltError(f"unknown dtype {precision!r}; known: {', '.join(PRECISIONS)}")
    if precision != PRECISIONS[0] and (
        runtime == "dense" or torch.device(device).type != "cpu" or not can_compile()
    ):
        raise SltError(
            f"dtype={precision!r} is for the sparse kernels on the CPU: load with runtime='auto' "
            "or 'sparse', and with the extra 'fast' (pip install 'slt-compress[fast]')"
        )


def fit_opened(
    opened: Opened,
    runtime: str,
    *,
    precision: str = PRECISIONS[0],
    seconds: float = SECONDS,
    refresh: bool = False,
) -> KernelPlan:
    """As `fit`, for the model of an opened folder on its example inputs.

    What `auto` measured is kept in the user's cache folder and not measured again, unless
    `refresh` asks for it.

    Raises:
        TicketError, ArtifactError: the stored probe is damaged.
    """
    module, shapes = opened.module, opened.shapes_now
    if runtime != "auto":
        plan = fit(module, shapes, runtime, {}, precision=precision)
        return _with_error(plan, opened, precision)
    memory = memory_of(opened, precision)
    before = None if refresh else memory.recall()
    known = None if before is None else recalled(before, module, shapes, precision)
    if known is not None:
        return known
    runs, warning = runs_of(opened)
    plan = fit(module, shapes, runtime, runs, seconds=seconds, precision=precision)
    plan = _with_error(replace(plan, warning=warning), opened, precision)
    points = {name: choice.points for name, choice in plan.choices.items()}
    memory.keep(Measured(layers=points, faster=plan.faster, warning=warning, error=plan.error))
    return plan


def _with_error(plan: KernelPlan, opened: Opened, precision: str) -> KernelPlan:
    """The plan with the error of a lower precision, where the model can be run."""
    if precision == PRECISIONS[0] or not plan.forwards:
        return plan
    runs, warning = runs_of(opened)
    return plan if warning is not None else replace(plan, error=error_of(plan, runs))
