"""Losses by what the outputs of a head are: one class of many, any of many, or numbers."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from slt_compress.checkpoints.tasks import Head
from slt_compress.evidence.losses import divergence, label_loss


def head_loss(head: Head, logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Loss of labels, mean over rows: cross entropy, binary cross entropy, or squared error.

    Without a single label (empty targets, no tags) it is 0, with a gradient of 0.
    """
    if labels.numel() == 0:
        return logits.float().sum() * 0.0
    if head == "flags":
        smooth = labels.float() * (1.0 - label_smoothing) + 0.5 * label_smoothing
        return F.binary_cross_entropy_with_logits(logits.float(), smooth)
    return label_loss(logits, labels, label_smoothing)


def head_divergence(
    head: Head, student: Tensor, teacher: Tensor, temperature: float = 1.0
) -> Tensor:
    """How far rows of outputs [M, C] are from the dense network's, mean over rows.

    One class of many: T^2 KL of the softmax (`divergence`). Any of many: T^2 KL of the C Bernoulli
    variables of each row, mean over them. Numbers: mean squared difference.
    """
    if student.numel() == 0:
        return student.float().sum() * 0.0
    if head == "numbers":
        return F.mse_loss(student.float(), teacher.float())
    if head == "flags":
        ours, theirs = student.float() / temperature, teacher.float() / temperature
        likely = theirs.sigmoid()
        cross = F.binary_cross_entropy_with_logits(ours, likely)
        own = F.binary_cross_entropy_with_logits(theirs, likely)
        return (cross - own) * temperature**2
    return divergence(student, teacher, temperature)


def head_score(head: Head, logits: Tensor, labels: Tensor) -> float | None:
    """Share of right answers in a batch, to be watched; None for numbers and without labels."""
    if labels.numel() == 0 or head == "numbers" or logits.shape[-1] < 2:
        return None
    if head == "flags":
        return float(((logits.detach() > 0) == (labels > 0.5)).float().mean())
    if labels.is_floating_point():
        return None
    return float((logits.detach().argmax(-1) == labels).float().mean())
