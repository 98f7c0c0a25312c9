"""Tensors set aside: in a file without a name, so that they take no memory until they are read."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def set_aside(tensors: Mapping[str, Tensor], folder: Path | None) -> dict[str, Tensor]:
    """Copies (fp32, CPU) that lie in a file on the file system of a folder, which no one else sees.

    The file goes with the last of them. Without a folder, or where it cannot be written, the copies
    are in memory.
    """
    if folder is not None:
        try:
            return _mapped(tensors, folder)
        except OSError:  # such as a full disk
            pass
    return {name: tensor.detach().to("cpu", torch.float32, copy=True) for name, tensor in
            tensors.items()}  # fmt: skip


def _mapped(tensors: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    copies, offset = {}, 0
    with tempfile.TemporaryFile(dir=folder) as file:
        for tensor in tensors.values():
            tensor.detach().float().cpu().contiguous().numpy().tofile(file)
        file.flush()
        for name, tensor in tensors.items():
            if tensor.numel():
                # copy on write: nothing that is done to the tensor reaches the file
                content = np.memmap(file, np.float32, "c", offset, tuple(tensor.shape) or (1,))
                copies[name] = torch.from_numpy(content).reshape(tensor.shape)
                offset += content.nbytes
            else:
                copies[name] = torch.empty(tensor.shape)
    return copies
