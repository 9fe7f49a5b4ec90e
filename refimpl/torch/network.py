"""The list of operations as an `nn.Module`, and the module as a model file."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import numpy as np
import torch
from torch import nn

from refimpl.conventions import ConfigError, DtypeError, ShapeError
from refimpl.models import VisionTransformer, binary, files, flatten, unflatten, units
from refimpl.models import params as parameters
from refimpl.models.nodes import INPUT, Network
from refimpl.models.params import Params
from refimpl.torch import functions

STATISTICS = ("running_mean", "running_variance")


class Module(nn.Module):
    """A network of ours: images (B, channels, H, W) -> logits, as `VisionTransformer.predict`.

    Names of its `state_dict()` are those of [SPEC 6.4]. What no step moves (the statistics of batch
    norms, band weights that are kept) are buffers, all else parameters. It computes the same in
    training and evaluation, and in the dtype of its parameters: autocast has no hold on it.

    >>> import refimpl
    >>> net = module(refimpl.create_model("didb_micro", depth=1))
    >>> net.state_dict()["blocks.0.attn.q_low.weight"].shape
    torch.Size([64, 64])
    """

    def __init__(self, model: VisionTransformer, params: Params):
        super().__init__()
        self.model = model
        flat, network = flatten(params), model.network
        parameters.check(network.parameters, flat)
        for path in network.parameters:
            tensor = torch.from_numpy(np.array(flat[path]))
            *parents, leaf = path.split(".")
            group = _group(self, parents)
            if _is_frozen(network, path):
                group.register_buffer(leaf, tensor)
            else:
                group.register_parameter(leaf, nn.Parameter(tensor))

    def forward(self, images: Any) -> Any:
        """Compute the logits of images (B, channels, H, W), of any size that the model runs on."""
        network, values = self.network(images), {INPUT: images, **self.tensors()}
        with without_autocast(images.device.type):
            for node, step in zip(network.nodes, units.steps_of(network, frozenset()), strict=True):
                args = [values[name] for name in node.args]
                y = getattr(functions, node.op)(*args, **node.attributes)
                values.update(zip(node.outputs, y if len(node.outputs) > 1 else (y,), strict=True))
                for name in step.free:
                    del values[name]
        return values[network.output]

    def network(self, images: Any) -> Network:
        """List the operations for images of this size; ShapeError, DtypeError where none runs."""
        require_tensor("images", images)
        config, shape = self.model.config, tuple(images.shape)
        dtype = next(iter(self.tensors().values())).dtype
        if images.dtype != dtype:
            raise DtypeError(
                f"images is {images.dtype}; expected {dtype}, as the parameters have it"
            )
        if len(shape) != 4 or shape[1] != config.channels or 0 in shape:
            raise ShapeError(f"images has shape {shape}; expected (any, {config.channels}, H, W)")
        if shape[2:] == config.image_size:
            return self.model.network
        if any(side % config.patch_size for side in shape[2:]):
            raise ShapeError(
                f"images has shape {shape}; expected rows and columns that are multiples of "
                f"patch_size {config.patch_size}"
            )
        return binary.network(config, shape[2:])

    def tensors(self) -> dict[str, Any]:
        """Every parameter and buffer by its path [SPEC 6.4], a shared one by each of its own."""
        parameters = self.named_parameters(remove_duplicate=False)
        return {**dict(parameters), **dict(self.named_buffers(remove_duplicate=False))}


def module(model: VisionTransformer, params: Params | None = None) -> Module:
    """Make an `nn.Module` of a model, with copies of its parameters, which need not be given.

    Fresh ones are those of [SPEC 6.6] in float32, drawn with a seed from PyTorch's generator.
    The module's dtype is that of the parameters; `.to(...)` changes it, and the device. ShapeError
    and DtypeError where they are not the model's.

    >>> import refimpl
    >>> net = module(*refimpl.load("didb_micro_mnist"))
    >>> net(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    if params is None:
        seed = torch.randint(2**63 - 1, ()).item()
        params = model.init(np.random.default_rng(seed))
    return Module(model, params)


def save(module: Module, path: str | os.PathLike, **described: Any) -> None:
    """Write a module as a latent model file, as `refimpl.save` does with these options.

    float32, or float64 where the module is; half precision is widened. ConfigError for another
    module and for one on the device meta, else errors as `refimpl.save`.

    >>> import tempfile, refimpl
    >>> net = module(refimpl.create_model("didb_micro", depth=1))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(net, f"{folder}/mine.safetensors")
    ...     refimpl.load(f"{folder}/mine.safetensors")[0].config.depth
    1
    """
    if not isinstance(module, Module):
        raise ConfigError(
            f"{os.fspath(path)} not written: found {type(module).__name__}; expected what "
            "refimpl.torch.module made"
        )
    tensors, declared = module.tensors(), module.model.network.parameters
    if empty := [name for name in declared if tensors[name].is_meta]:
        raise ConfigError(
            f"{os.fspath(path)} not written: {empty[0]} is on the device meta, where tensors have "
            "no values; expected another device"
        )
    params = unflatten({name: array_of(tensors[name]) for name in declared})
    files.save(path, module.model, params, **described)


def require_tensor(name: str, value: Any) -> None:
    """Raise DtypeError unless a value is a tensor, such as an array is not."""
    if not isinstance(value, torch.Tensor):
        raise DtypeError(f"{name} is of type {type(value).__name__}; expected a torch.Tensor")


def without_autocast(device: str) -> contextlib.AbstractContextManager:
    """Hold autocast off, on devices that have it."""
    if torch.amp.is_autocast_available(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()


def array_of(tensor: Any) -> np.ndarray:
    """Copy a tensor of any device: float64, or float32 of what is smaller."""
    wide = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    return tensor.detach().to("cpu", wide).numpy().copy()


def _group(module: nn.Module, names: list[str]) -> nn.Module:
    """The module below these names, made where it is not there."""
    for name in names:
        if name not in module._modules:
            module.add_module(name, nn.Module())
        module = module._modules[name]
    return module


def _is_frozen(network: Network, path: str) -> bool:
    """Whether no step moves a parameter: statistics, and what is read through a stop alone."""
    readers = {network.nodes[i].op for i, _ in network.readers.get(path, ())}
    return network.parameters[path].role in STATISTICS or readers == {"stop_gradient"}
