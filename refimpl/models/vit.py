"""The network: patch embedding, blocks, norm, head or decoder [SPEC 6.3, 6.7, 10].

tokens = [class token, PatchEmbed(images)] + position embedding
       = LayerNorm(PatchEmbed(images))     with windows
x      = block(x) for every block, between two stages merge(x)
logits = head(LayerNorm(x))                of an image, or of every pixel where there is a decoder
       = head(pyramid of all stages)       of every pixel, decoder="fpn"

Images of another size than the configuration's run on parameters that are interpolated first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from refimpl import ops
from refimpl.conventions import ConfigError, DtypeError, ShapeError, float_dtype, require_shape
from refimpl.data.preprocessing import Preprocessing
from refimpl.models import (
    block,
    classification_head,
    feature_pyramid,
    fork,
    linear_decoder,
    patch_merging,
    real_block,
    resize,
)
from refimpl.models import params as parameters
from refimpl.models.config import Config, named
from refimpl.models.params import Params
from refimpl.models.run import Run, Tap, pick
from refimpl.models.stage import Stage


class Cache(NamedTuple):
    params: Params  # those that ran: for images of another size, interpolated
    resize: resize.Cache
    backend: Any
    patch_embed: ops.patch_embed.Cache
    embed_norm: ops.layer_norm.Cache | None  # with windows
    layers: list[block.Cache | real_block.Cache | patch_merging.Cache]
    norm: ops.layer_norm.Cache
    pyramid: feature_pyramid.Cache | None  # with decoder="fpn"
    head: classification_head.Cache | linear_decoder.Cache


class Layer(NamedTuple):
    """A block or a patch merging."""

    module: Any  # with forward and backward
    stage: Stage
    name: str  # of its parameters and taps
    source: str  # the tap that it reads

    def params(self, tree: Params) -> Params:
        group, key = self.name.split(".")
        return tree[group][key]


def create_model(name: str, **overrides: Any) -> VisionTransformer:
    """An untrained architecture of [SPEC 6.5, 10] ("didb_micro", "segmenter_react_tiny", …).

    Overrides are fields of Config. An unknown name or a bad field raises ConfigError.
    """
    return VisionTransformer(named(name, **overrides))


@dataclass(frozen=True)
class VisionTransformer:
    """A configuration and its pure functions of parameters; it holds no arrays."""

    config: Config
    # of a model that was loaded: how its images are made ready, and what its classes are called
    preprocessing: Preprocessing | None = field(default=None, compare=False)
    class_names: tuple[str, ...] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.class_names is not None:
            object.__setattr__(self, "class_names", _names(self.class_names, self.config))
        if self.preprocessing is not None:
            found = (self.preprocessing.channels, *self.preprocessing.size)
            expected = (self.config.channels, *self.config.image_size)
            if found != expected:
                raise ConfigError(f"preprocessing makes {found}, the model reads {expected}")

    def replace(self, **fields: Any) -> VisionTransformer:
        """The same network with other fields: `replace(binarize="activations")` is stage 1.

        Its preprocessing makes images of the new size, and it has the same class names; either is
        None where the number of channels or of classes is another.
        """
        config, preprocessing, names = self.config.replace(**fields), None, None
        if self.preprocessing is not None and config.channels == self.config.channels:
            preprocessing = dataclasses.replace(self.preprocessing, size=config.image_size)
        if config.num_classes == self.config.num_classes:
            names = self.class_names
        return VisionTransformer(config, preprocessing, names)

    def prepare(self, images: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
        """Turn images uint8 (n, H, W) or (n, H, W, 3), of any size, into what `predict` takes.

        A list of images (H, W) or (H, W, 3), arrays or PIL's, may have a size each. Returns float32
        (n, channels, H, W) of the model's size, by `preprocessing`: what the model was trained on.
        ConfigError for a model that was not loaded and has none, DataError for what is no image.
        """
        if self.preprocessing is None:
            raise ConfigError(
                "model: preprocessing is None; expected that of a trained model, from refimpl.load"
            )
        if isinstance(images, np.ndarray):
            return self.preprocessing.apply_array(images)
        none = np.empty((0, *self.preprocessing.shape), np.uint8)
        each = [none, *(np.asarray(image)[None] for image in images)]
        return np.concatenate([self.preprocessing.apply_array(image) for image in each])

    def init(self, rng: np.random.Generator, dtype: Any = np.float32) -> Params:
        """Fresh parameters [SPEC 6.6], a nested dict [SPEC 6.4]."""
        return parameters.initialise(self.config, rng, dtype)

    def forward(
        self, params: Params, images: np.ndarray, *, tap: Tap | None = None, backend: Any = ops
    ) -> tuple[np.ndarray, Cache]:
        """images (B, channels, H, W) -> (logits (B, classes), cache for backward).

        H and W are any multiples of the patch, with windows such that these divide every stage's
        grid [SPEC 6.7]: for another size than the configuration's the
        network of `resized` runs, made anew each time; a listener hears its values, and the
        gradients of the parameters as they were given. With a decoder every pixel has logits,
        (B, classes, H, W), here and below. Images and parameters share one dtype. Errors:
        ShapeError, DtypeError, ConfigError for a size that windows do not divide, and
        NonFiniteError with the dotted name of the layer.
        """
        return self._forward(params, images, Run(self.config, backend, tap), keep=True)

    def predict(self, params: Params, images: np.ndarray, *, backend: Any = ops) -> np.ndarray:
        """images (B, channels, H, W) -> logits (B, classes), keeping no cache."""
        return self._forward(params, images, Run(self.config, backend, None), keep=False)[0]

    def resized(
        self, params: Params, image_size: int | tuple[int, int]
    ) -> tuple[VisionTransformer, Params]:
        """The network for images of another size, (H, W) or the side of a square [SPEC 6.3].

        Parameters with an entry a token are interpolated, the others are the same arrays.
        ConfigError where the patch does not divide the size; ShapeError, DtypeError as in forward.
        """
        parameters.check(self.config, params)
        model = self.replace(image_size=image_size)
        return model, resize.forward(params, self.config, model.config.image_size)[0]

    def _forward(
        self, params: Params, images: np.ndarray, run: Run, keep: bool
    ) -> tuple[np.ndarray, Cache]:
        """With `keep` false each block's cache is dropped before the next block runs."""
        self._check(params, images)
        params, resized = resize.forward(params, run.config, images.shape[2:], run.backend)
        run = run._replace(config=resized.config)
        config, backend, tap, _ = run
        patches, patch_embed_cache = backend.patch_embed.forward(images, **params["patch_embed"])
        x, embed_norm_cache = _tokens(params, patches, run)  # (B, N, C)
        if tap is not None:
            tap("patch_embed.out", patches, pick(_embed(params), 0), ["input"])
            tap("tokens", x, pick(_tokens_of(params, config), 0), ["patch_embed.out"])
        layer_caches, features = [], []  # features: what a pyramid reads
        for layer in _layers(config):
            if config.decoder == "fpn" and layer.module is patch_merging:
                features.append(x)
            x, cache = layer.module.forward(
                layer.params(params),
                x,
                run._replace(stage=layer.stage),
                name=layer.name,
                source=layer.source,
            )
            if keep:
                layer_caches.append(cache)
            del cache
        norm, norm_cache = backend.layer_norm.forward(x, **params["norm"], eps=config.norm_eps)
        if tap is not None:
            tap("norm.out", norm, pick(_normalise(params, config), 0), [_last(config)])
        decoded, pyramid_cache = norm, None
        if config.decoder == "fpn":
            decoded, pyramid_cache = feature_pyramid.forward(
                params["decoder"], [*features, norm], run
            )
        logits, head_cache = _head_module(config).forward(params["head"], decoded, run)
        return logits, Cache(
            params,
            resized,
            backend,
            patch_embed_cache,
            embed_norm_cache,
            layer_caches,
            norm_cache,
            pyramid_cache,
            head_cache,
        )

    def backward(
        self, dlogits: np.ndarray, cache: Cache, *, tap: Tap | None = None
    ) -> tuple[np.ndarray, Params]:
        """dlogits (B, classes) -> (dimages (B, channels, H, W), gradients shaped like forward's
        params, also where these were interpolated).

        Reads the cache and leaves it as it was: any number of backwards, in any order.
        """
        config, params, backend = cache.resize.config, cache.params, cache.backend
        tap = resize.listener(tap, cache.resize)
        run = Run(config, backend, tap)
        float_dtype("backward", dlogits=dlogits, parameters=params["head"]["weight"])
        grads: Params = {}
        dnorm, grads["head"] = _head_module(config).backward(
            dlogits, params["head"], cache.head, run
        )
        forks: dict[str, fork.Fork] = {}
        if cache.pyramid is not None:
            dnorm, forks, grads["decoder"] = feature_pyramid.backward(
                dnorm, params["decoder"], cache.pyramid, run
            )
        dx, *norm = backend.layer_norm.backward(dnorm, cache.norm)
        grads["norm"] = {"weight": norm[0], "bias": norm[1]}
        if tap is not None:
            _tap_norm(params, dx, grads, run)
        for layer, layer_cache in zip(
            reversed(_layers(config)), reversed(cache.layers), strict=True
        ):
            group, key = layer.name.split(".")
            other = forks.get(layer.source)
            dx, grads.setdefault(group, {})[key] = layer.module.backward(
                dx,
                layer.params(params),
                layer_cache,
                run._replace(stage=layer.stage, tap=fork.listener(tap, layer.source, other)),
                name=layer.name,
                source=layer.source,
            )
            dx = fork.joined(dx, other)
        dpatches, tokens_grads = _tokens_backward(dx, cache, config)
        grads |= tokens_grads
        dimages, *embed = backend.patch_embed.backward(dpatches, cache.patch_embed)
        grads["patch_embed"] = {"weight": embed[0], "bias": embed[1]}
        if tap is not None:
            _tap_tokens(params, dpatches, grads, run)
            _tap_embedding(params, dimages, grads, run)
        return dimages, resize.backward(_in_order(grads, params), cache.resize)

    def _check(self, params: Params, images: np.ndarray) -> None:
        if not isinstance(params, Mapping):
            raise DtypeError(
                f"model: params is {type(params).__name__}; expected a dict: (params, images)"
            )
        if np.asarray(images).dtype.kind in "biu":
            raise DtypeError(
                f"model: images is {np.asarray(images).dtype}; expected floats, such as "
                "model.prepare(images) makes of pixels"
            )
        parameters.check(self.config, params)
        patch = self.config.patch_size
        require_shape("model", "images", images, (None, self.config.channels, None, None))
        float_dtype("model", images=images, parameters=params["patch_embed"]["weight"])
        if len(images) == 0:
            raise ShapeError(f"model: images has shape {images.shape}; expected at least one image")
        if any(side == 0 or side % patch for side in images.shape[2:]):
            raise ShapeError(
                f"model: images has shape {images.shape}; "
                f"expected rows and columns that are multiples of patch_size {patch}"
            )


def _names(names: Any, config: Config) -> tuple[str, ...]:
    if not (isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)):
        raise ConfigError(f"class_names is {names!r:.80}; expected a list of strings")
    if len(names) != config.num_classes:
        raise ConfigError(f"{len(names)} class names; expected {config.num_classes}")
    return tuple(names)


def _layers(config: Config) -> list[Layer]:
    """Everything between the tokens and the last norm, in order of computation."""
    module = block if config.block == "binary" else real_block
    merges = config.merges
    found, source = [], "tokens"
    for i in range(config.num_blocks):
        if i in merges:
            name = f"merges.{merges[i]}"
            found.append(Layer(patch_merging, config.stage_of(i - 1), name, source))
            source = f"{name}.proj.out"
        found.append(Layer(module, config.stage_of(i), f"blocks.{i}", source))
        source = f"blocks.{i}.out"
    return found


def _last(config: Config) -> str:
    """The tap that the last norm reads."""
    return f"blocks.{config.num_blocks - 1}.out"


def _head_module(config: Config):
    return classification_head if config.decoder == "none" else linear_decoder


def _tokens(params: Params, patches: np.ndarray, run: Run):
    """patches (B, gh*gw, C) -> ((B, N, C), the norm's cache); the class token first, if any."""
    if run.config.window:
        return run.backend.layer_norm.forward(
            patches, **params["embed_norm"], eps=run.config.norm_eps
        )
    if "cls_token" in params:
        cls_token = np.broadcast_to(params["cls_token"], (len(patches), 1, patches.shape[-1]))
        patches = np.concatenate([cls_token, patches], axis=1)
    return patches + params["pos_embed"], None


def _tokens_backward(dx: np.ndarray, cache: Cache, config: Config) -> tuple[np.ndarray, Params]:
    """(B, N, C) -> (gradient of the patches (B, gh*gw, C), gradients of the parameters)."""
    if cache.embed_norm is not None:
        dpatches, dweight, dbias = cache.backend.layer_norm.backward(dx, cache.embed_norm)
        return dpatches, {"embed_norm": {"weight": dweight, "bias": dbias}}
    # forward was tokens = [class token, patches] + position embedding
    grads = {"pos_embed": dx.sum(axis=0, keepdims=True)}
    first = config.first_patch
    if first:
        grads["cls_token"] = grads["pos_embed"][:, :1].copy()
    return dx[:, first:], grads


def _embed(params: Params) -> Callable:
    return lambda image: ops.patch_embed.forward(image, **params["patch_embed"])


def _tokens_of(params: Params, config: Config) -> Callable:
    return lambda patches: _tokens(params, patches, Run(config, ops, None))


def _normalise(params: Params, config: Config) -> Callable:
    return lambda x: ops.layer_norm.forward(x, **params["norm"], eps=config.norm_eps)


def _in_order(grads: Params, params: Params) -> Params:
    """The gradients in the order of the parameters."""
    flat = parameters.flatten(grads)
    return parameters.unflatten({path: flat[path] for path in parameters.flatten(params)})


def _tap_norm(params: Params, dx, grads: Params, run: Run) -> None:
    config, tap = run.config, run.tap

    def normalisation(dnorm, x):
        return ops.layer_norm.backward(dnorm, _normalise(params, config)(x)[1])

    last = _last(config)
    read = ["grads/norm.out", last]
    for i, leaf in enumerate(("weight", "bias")):
        tap(f"grads/param.norm.{leaf}", grads["norm"][leaf], pick(normalisation, i + 1), read)
    tap(f"grads/{last}", dx, pick(normalisation, 0), read)


def _tap_tokens(params: Params, dpatches, grads: Params, run: Run) -> None:
    tap, first = run.tap, run.config.first_patch
    if run.config.window:
        _tap_embed_norm(params, dpatches, grads, run)
        return

    def position_gradient(dx):
        return dx.sum(axis=0, keepdims=True)

    read = ["grads/tokens"]
    tap("grads/param.pos_embed", grads["pos_embed"], position_gradient, read)
    if first:
        cls_gradient = grads["cls_token"]
        tap("grads/param.cls_token", cls_gradient, lambda dx: position_gradient(dx)[:, :1], read)
    tap("grads/patch_embed.out", dpatches, lambda dx: dx[:, first:], read)


def _tap_embed_norm(params: Params, dpatches, grads: Params, run: Run) -> None:
    def gradients(dtokens, patches):
        return ops.layer_norm.backward(dtokens, _tokens_of(params, run.config)(patches)[1])

    read = ["grads/tokens", "patch_embed.out"]
    for i, leaf in enumerate(("weight", "bias")):
        value, op = grads["embed_norm"][leaf], pick(gradients, i + 1)
        run.tap(f"grads/param.embed_norm.{leaf}", value, op, read)
    run.tap("grads/patch_embed.out", dpatches, pick(gradients, 0), read)


def _tap_embedding(params: Params, dimages, grads: Params, run: Run) -> None:
    tap = run.tap

    def embedding(dpatches, image):
        return ops.patch_embed.backward(dpatches, _embed(params)(image)[1])

    read = ["grads/patch_embed.out", "input"]
    for i, leaf in enumerate(("weight", "bias")):
        op = pick(embedding, i + 1)
        tap(f"grads/param.patch_embed.{leaf}", grads["patch_embed"][leaf], op, read)
    tap("grads/input", dimages, pick(embedding, 0), read)
