"""The product of torch's own CSR kernels (MKL's, where torch was built with it)."""

from __future__ import annotations

import warnings

from torch import Tensor


class CsrLinear:
    """Inputs [..., columns] times a sparse matrix transposed, plus a bias [rows]."""

    def __init__(self, matrix: Tensor, bias: Tensor | None) -> None:
        with warnings.catch_warnings():  # torch warns once per process that they are in beta
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            self.matrix = matrix.to_sparse_csr()
        self.bias = None if bias is None else bias.clone()

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        parts = (self.matrix.crow_indices(), self.matrix.col_indices(), self.matrix.values())
        return sum(part.nbytes for part in parts)

    def dense(self) -> Tensor:
        """The matrix [rows, columns], bit for bit."""
        return self.matrix.to_dense()

    def __call__(self, inputs: Tensor) -> Tensor:
        """[..., rows]; the kernel is fastest on activations as [columns, tokens]."""
        rows, columns = self.matrix.shape
        outputs = (self.matrix @ inputs.reshape(-1, columns).t()).t()
        if self.bias is not None:
            outputs = outputs + self.bias
        return outputs.contiguous().view(*inputs.shape[:-1], rows)
