"""A network of ours in PyTorch, to be trained on any device, and its way back [SPEC 6].

    import refimpl.torch

    module = refimpl.torch.module(*refimpl.load("didb_micro_mnist")).to("cuda")
    ...                                        # any training loop, with any optimizer
    refimpl.torch.save(module, "mine.safetensors")
"""

try:
    import torch as _torch  # noqa: F401
except ImportError:
    raise ModuleNotFoundError(
        "refimpl.torch: PyTorch is not installed, expected the extra: pip install refimpl[torch]",
        name="torch",
    ) from None

from refimpl.torch.network import Module, module, save
from refimpl.torch.taps import taps

__all__ = ["Module", "module", "save", "taps"]
