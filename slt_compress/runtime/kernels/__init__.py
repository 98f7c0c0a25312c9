"""Kernels that multiply activations with sparse weights on a CPU.

`csr` is torch's own product. `compiled` is ours; it is compiled for this machine on first use.
"""

from __future__ import annotations

from slt_compress.runtime.kernels.compiled import can_compile, has_team
from slt_compress.runtime.kernels.convolution import Convolution, Geometry
from slt_compress.runtime.kernels.csr import CsrLinear
from slt_compress.runtime.kernels.linear import Linear
from slt_compress.runtime.kernels.rows import sparse_rows

__all__ = [
    "Convolution",
    "CsrLinear",
    "Geometry",
    "Linear",
    "can_compile",
    "has_team",
    "sparse_rows",
]
