"""What a module computes on the way, by the names of golden bundles [SPEC 8.1]: a candidate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from refimpl.conventions import ShapeError
from refimpl.models import insides, replay
from refimpl.models.nodes import INPUT, Node
from refimpl.models.replay import Shown
from refimpl.torch import functions
from refimpl.torch.network import Module, array_of, require_tensor, without_autocast


def taps(module: Module, images: Any, dlogits: Any = None) -> dict[str, np.ndarray]:
    """Every tap of a run, with `dlogits`, like the logits, every gradient too: name -> array.

    Saved by `numpy.savez`, or `safetensors`, they are a candidate for `refimpl golden compare`.
    Also where parameters are frozen, gradients are those of the network. Errors as those of the
    module; ShapeError and DtypeError where `dlogits` are not like the logits.

    >>> import refimpl, refimpl.torch
    >>> net = refimpl.torch.module(refimpl.create_model("didb_micro", depth=1))
    >>> taps(net, torch.zeros(1, 1, 28, 28))["blocks.0.attn.low"].shape
    (1, 50, 64)
    """
    network, inside = module.network(images), {}
    if dlogits is not None:
        require_tensor("dlogits", dlogits)
    with torch.inference_mode(False), torch.enable_grad(), without_autocast(images.device.type):
        values = {INPUT: _leaf(images, True)}
        for name, tensor in module.tensors().items():
            values[name] = _leaf(tensor, isinstance(tensor, torch.nn.Parameter))
        for i, node in enumerate(network.nodes):
            args = [values[name] for name in node.args]
            inside[i], y = _run(node, args)
            values.update(zip(node.outputs, y if len(node.outputs) > 1 else (y,), strict=True))
    shown = replay.taps(network)
    found = {
        tap.name: _as_tap(tap, values[tap.source] if tap.source else inside[tap.node][tap.what])
        for taps in shown.forward
        for tap in taps
    }
    if dlogits is None:
        return found
    gradients = [tap for taps in shown.backward for tap in taps]
    sources = [
        values[tap.source] if tap.source else inside[tap.node][tap.what.removeprefix("d.")]
        for tap in gradients
    ]
    logits = values[network.output]
    if dlogits.shape != logits.shape:
        raise ShapeError(
            f"dlogits has shape {tuple(dlogits.shape)}; expected that of the logits, "
            f"{tuple(logits.shape)}"
        )
    found[replay.given(network).name] = array_of(dlogits)
    computed = _gradients(logits, sources, dlogits)
    return found | {tap.name: array_of(dx) for tap, dx in zip(gradients, computed, strict=True)}


def _leaf(tensor: Any, moves: bool) -> Any:
    """A copy that a gradient ends at, or none; whoever made the tensor keeps theirs as it is."""
    return tensor.detach().clone().requires_grad_(moves)


def _run(node: Node, args: list[Any]) -> tuple[dict[str, Any], Any]:
    """Values inside a node, and its output."""
    run, options = getattr(functions, node.op), node.attributes
    if insides.of(node) is None:
        return {}, run(*args, **options)
    if node.op == "boolean_attention":
        prob, value, alpha = args
        ratio, _ = functions.thresholded(prob, alpha)
        bit = functions.bits(ratio)
        whole = functions.context_of(bit, value, options["context"])
        return {"prob.z": ratio, "prob.bit": bit, "context.int": whole}, run(*args, **options)
    x, weight = args
    found = {"bit": functions.sign(x, options["ste"])}
    if options["binarize"] == "full":
        centred, scale = functions.binarized(weight)
        signs = functions.signs(centred)
        found |= {"weight.z": centred, "weight.bit": signs, "weight.scale": scale}
        found["int"] = functions.matmul(found["bit"], signs)
    return found, functions.binary_product(found["bit"], weight, options["binarize"])


def _as_tap(tap: Shown, value: Any) -> np.ndarray:
    return insides.to_tap(tap.kind, array_of(value))


def _gradients(logits: Any, sources: list[Any], dlogits: Any) -> Iterator[Any]:
    """Gradients of tensors; those that nothing of the logits depends on are 0."""
    asked = [source for source in sources if source.requires_grad]
    found = torch.autograd.grad(logits, asked, dlogits, materialize_grads=True)
    given = iter(found)
    for source in sources:
        yield next(given) if source.requires_grad else torch.zeros_like(source)
