"""The loss of a run by torch's own functions and autograd."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F


def distillation(
    logits: np.ndarray,
    labels: np.ndarray,
    smoothing: float,
    teacher_logits: np.ndarray,
    weight: float,
) -> tuple[float, np.ndarray]:
    """(loss, dlogits) of labels and a teacher, by a divergence and the teacher's entropy."""
    student = torch.tensor(logits, requires_grad=True)
    teacher = torch.log_softmax(torch.tensor(teacher_logits), dim=1)
    divergence = F.kl_div(
        F.log_softmax(student, dim=1), teacher, log_target=True, reduction="batchmean"
    )
    entropy = -(teacher.exp() * teacher).sum(dim=1).mean()
    hard = F.cross_entropy(student, torch.tensor(labels), label_smoothing=smoothing)
    loss = (1 - weight) * hard + weight * (divergence + entropy)
    loss.backward()
    return loss.item(), student.grad.numpy()
