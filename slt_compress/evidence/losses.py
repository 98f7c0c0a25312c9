"""Losses of logits against labels and against the dense network, and of hidden states."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def label_loss(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross entropy (nats, mean over rows), or mean squared error where the labels are floats."""
    if labels.is_floating_point():
        return F.mse_loss(logits.float().reshape(labels.shape), labels.float())
    return F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)


def divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 KL(teacher || student) of rows of logits [M, classes], mean over rows, in nats.

    Hinton, Vinyals & Dean 2015, "Distilling the Knowledge in a Neural Network", section 2. For a
    single output (regression) it is the mean squared difference.
    """
    if student.shape[-1] == 1:
        return F.mse_loss(student.float(), teacher.float())
    log_student = F.log_softmax(student.float() / temperature, dim=-1)
    log_teacher = F.log_softmax(teacher.float() / temperature, dim=-1)
    loss = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return loss * temperature**2


def relative_error(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over the mean square of the target."""
    target = target.float()
    return F.mse_loss(output.float(), target) / target.square().mean().clamp_min(1e-12)
