"""torch.optim.AdamW, Muon and torch's clipping, driven by given gradients and rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch


def adamw(
    params: Mapping[str, np.ndarray],
    gradients: Sequence[Mapping[str, np.ndarray]],
    rates: Sequence[float],
    decay: float,
    decayed: set[str],
    shares: Mapping[str, float],
) -> dict[str, np.ndarray]:
    """The parameters after one step for each entry of `gradients` and `rates`.

    The rate of a name in `shares` is that share of the step's.
    """
    tensors = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in params.items()}
    groups = [
        {
            "params": [tensor],
            "weight_decay": decay if name in decayed else 0.0,
            "share": shares.get(name, 1.0),
        }
        for name, tensor in tensors.items()
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8)
    for gradient, rate in zip(gradients, rates):
        for group in optimizer.param_groups:
            group["lr"] = rate * group["share"]
        for name, tensor in tensors.items():
            tensor.grad = torch.tensor(gradient[name])
        optimizer.step()
    return {name: tensor.detach().numpy() for name, tensor in tensors.items()}


def muon(
    start: np.ndarray, gradients: Sequence[np.ndarray], rates: Sequence[float], decay: float
) -> np.ndarray:
    """A matrix after one step for each entry of `gradients` and `rates`.

    Its iteration computes in bfloat16, whatever the matrix is.
    """
    tensor = torch.nn.Parameter(torch.tensor(start))
    optimizer = torch.optim.Muon([tensor], weight_decay=decay, adjust_lr_fn="match_rms_adamw")
    for gradient, rate in zip(gradients, rates):
        optimizer.param_groups[0]["lr"] = rate
        tensor.grad = torch.tensor(gradient)
        optimizer.step()
    return tensor.detach().numpy()


def clipped(gradients: Mapping[str, np.ndarray], most: float) -> dict[str, np.ndarray]:
    """The gradients after torch.nn.utils.clip_grad_norm_."""
    tensors = {name: torch.nn.Parameter(torch.zeros(value.shape, dtype=torch.float64))
               for name, value in gradients.items()}  # fmt: skip
    for name, tensor in tensors.items():
        tensor.grad = torch.tensor(gradients[name])
    torch.nn.utils.clip_grad_norm_(list(tensors.values()), most)
    return {name: tensor.grad.numpy() for name, tensor in tensors.items()}
