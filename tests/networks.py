"""Small networks: configurations that Hypothesis draws, and all their arrays from one seed.

The arrays keep every threshold busy: no move, shift or bias is 0, signs are mixed, some |z| and
|Wc| exceed 1, and the probabilities lie on both sides of alpha / 2 and of alpha. In float64 the
values next to a threshold are then some 1e-6 away from it, and two correct programs, whose rounding
differs by 1e-15, agree on every bit. So no test has to excuse a flip in float64.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from refimpl import ops
from refimpl.models import Config, VisionTransformer, flatten, nodes, unflatten
from refimpl.models import params as declared

# Every field with a closed list of values [SPEC 6.5, 9]; the first is the baseline's.
POOLS = ("cls", "mean")
DECODERS = ("none", "linear")  # and "fpn", with windows only
SWITCHES: dict[str, tuple] = {
    "binarize": ("full", "activations", "none"),
    "ste": ("polynomial", "clip"),
    "layer_scale": (False, True),
    "alpha_scope": ("layer", "head"),
    "similarity": ("plain", "haar"),
    "attention": ("plain", "differential"),
    "rprelu": ("channel", "token"),
    "context": ("sum", "differences"),
    "neighbours": ("existing", "eight", "none"),
    "haar_mode": ("edge", "periodic", "none"),
    "haar_cls": ("both", "low"),
    "band_weights": ("learned", "fixed"),
}
# Those of the networks of others [SPEC 6.8]; a file names them where they are used.
IMPORTED: dict[str, tuple] = {
    "last_norm": ("tokens", "pooled"),
    "position": ("usual", "patches"),
    "distillation": ("none", "token", "head"),
    "norm": ("layer", "batch"),
    "box": ("none", "3", "5", "3+5"),
    "qkv_bias": (True, False),
    "merge_eps": (None, 1e-3),  # with windows
}
DIDB = {"similarity": "haar", "attention": "differential", "rprelu": "token"}
GRIDS = ((2, 3), (3, 2), (1, 4), (5, 1), (3, 5), (4, 2), (1, 1))


class Network(NamedTuple):
    """A model with random arrays for one forward and backward."""

    model: VisionTransformer
    params: dict[str, Any]
    images: np.ndarray  # (B, channels, H, W)
    dlogits: np.ndarray  # (B, classes), with a decoder (B, classes, H, W)

    def run(
        self, tap: Any = None, backend: Any = ops
    ) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Logits, gradient of the images, gradients of the parameters by dotted name."""
        logits, cache = self.model.forward(self.params, self.images, tap=tap, backend=backend)
        dimages, grads = self.model.backward(self.dlogits, cache, tap=tap)
        return logits, dimages, flatten(grads)


def small(**fields: Any) -> Config:
    """A network of odd sizes, all of them different; `fields` override."""
    sizes = {"image_size": (4, 6), "patch_size": 2, "channels": 3, "dim": 10, "depth": 2}
    return Config(**{**sizes, "heads": 2, "mlp_ratio": 3, "num_classes": 4, **fields})


# Windows 1, 2 and 3; shifted and not, in both stages; a thin grid, one smaller than the window;
# decoders, a pyramid of three levels and one of a single level
SWINS: tuple[dict[str, Any], ...] = (
    {"image_size": (8, 16), "window": 2},
    {"image_size": (12, 24), "window": 3},
    {"image_size": (8, 8), "window": 4, "depth": (1, 2)},
    {"image_size": (8, 12), "window": 2, "depth": (2,)},
    {"image_size": (8, 16), "window": 1, "depth": (1, 2, 1), "dim": 8},
    {"image_size": (8, 16), "window": 2, "depth": (1, 2), "decoder": "linear"},
    {"image_size": (32, 16), "window": 2, "depth": (1, 1, 1), "decoder": "fpn"},
    {"image_size": (8, 12), "window": 2, "depth": (2,), "decoder": "fpn"},
)


def swin(**fields: Any) -> Config:
    """A small network with windows; `fields` override."""
    return small(**{"depth": (2, 2), "pool": "mean", **SWINS[0], **fields})


@st.composite
def swins(draw: st.DrawFn, **fixed: Any) -> Config:
    """Networks with windows; `fixed` are fields to keep."""
    fields = {"block": draw(st.sampled_from(("binary", "binary", "real"))), **fixed}
    if fields["block"] == "binary":
        fields = {
            **{name: draw(st.sampled_from(values)) for name, values in SWITCHES.items()},
            **fields,
        }
    return swin(**{**draw(st.sampled_from(SWINS)), **fields})


@st.composite
def pyramids(draw: st.DrawFn, **fixed: Any) -> Config:
    """Networks that decode two or three stages; grids, channels and classes differ."""
    depth = draw(st.lists(st.integers(1, 2), min_size=2, max_size=3))
    sides = draw(st.permutations((1, 2, 3)))[:2]
    window, patch = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    heads, head_dim, classes, ratio, channels = draw(
        st.lists(st.integers(1, 9), min_size=5, max_size=5, unique=True).filter(
            lambda s: s[0] * s[1] not in s[2:]
        )
    )
    sizes = {
        "image_size": [side * window * 2 ** (len(depth) - 1) * patch for side in sides],
        "patch_size": patch,
        "channels": channels,
        "dim": heads * head_dim,
        "depth": depth,
        "window": window,
        "heads": heads,
        "mlp_ratio": ratio,
        "num_classes": classes,
    }
    return draw(swins(decoder="fpn", **sizes, **fixed))


@st.composite
def narrow(draw: st.DrawFn) -> Config:
    """Few channels, few keys: in front of many a LayerNorm stands a row that hardly varies.

    Where a query sees one key, its context is alpha or 0 times the signs of the value: one number
    where all of them are equal.
    """
    heads, head_dim = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    sizes = {
        "heads": heads,
        "dim": heads * head_dim,
        "mlp_ratio": draw(st.integers(1, 3)),
        "norm_eps": draw(st.sampled_from((1e-5, 1e-6))),
    }
    if draw(st.booleans()):
        windows = draw(st.sampled_from([f for f in SWINS if f["window"] < 3]))
        return draw(swins(**{**windows, "window": 1, **sizes}))
    grid = draw(st.sampled_from(((1, 1), (1, 2))))
    return draw(configs(image_size=grid, patch_size=1, **sizes))


def all_configs() -> st.SearchStrategy[Config]:
    """Networks with windows and without."""
    return st.one_of(configs(), configs(), swins())


def covering() -> dict[str, Config]:
    """Each value of each field once in the network of DIDB-ViT and once in the baseline."""
    found = {}
    for family, switches in (("didb", DIDB), ("react", {})):
        for field, values in {"pool": POOLS, "decoder": DECODERS, **SWITCHES}.items():
            for value in values:
                found[f"{family}-{field}-{value}"] = small(**{**switches, field: value})
    for pool in POOLS:
        found[f"deit-pool-{pool}"] = small(block="real", norm_eps=1e-6, pool=pool)
    found["deit-decoder-linear"] = small(block="real", norm_eps=1e-6, decoder="linear")
    return found


def imported() -> dict[str, Config]:
    """Networks of others [SPEC 6.8]: every field of theirs, alone and together."""
    real = {"block": "real", "norm_eps": 1e-6}
    fields: dict[str, dict[str, Any]] = {
        "timm-avg": {**real, "pool": "patches", "last_norm": "pooled"},
        "timm-avg-no-class-token": {**real, "pool": "mean", "last_norm": "pooled"},
        "timm-avg-norm-before": {**real, "pool": "patches", "qkv_bias": False},
        "deit3": {**real, "layer_scale": True, "position": "patches"},
        "timm-ratio": {**real, "mlp_ratio": 1.5},
        "distilled": {**real, "distillation": "head"},
        "distilled-patches": {**real, "distillation": "head", "position": "patches"},
        "distillation-token": {**real, "distillation": "token"},
        "binaryvit": {"norm": "batch"},
        "binaryvit-boxes": {"norm": "batch", "box": "3+5", "pool": "mean", "layer_scale": True},
        "binaryvit-w32a1": {"norm": "batch", "box": "3", "pool": "mean", "binarize": "activations"},
        "binaryvit-w32a32": {"norm": "batch", "box": "5", "pool": "mean", "binarize": "none"},
        "w1a32": {"binarize": "weights", **DIDB},
        "binaryvit-w1a32": {"norm": "batch", "binarize": "weights"},
        "binary-distilled": {"distillation": "token", "rprelu": "token", "position": "patches"},
    }
    return {name: small(**found) for name, found in fields.items()} | {
        "ms-swin": swin(**real, position="patches", layer_scale=True, qkv_bias=False),
        "hf-swin": swin(**real, merge_eps=1e-3, mlp_ratio=2.55),  # 25 of 10 channels, 51 of 20
        "binary-swin": swin(norm="batch", box="3+5", merge_eps=1e-3),
    }


@st.composite
def others(draw: st.DrawFn) -> Config:
    """Networks of others [SPEC 6.8] in any combination that holds together."""
    block = draw(st.sampled_from(("binary", "real")))
    pool = draw(st.sampled_from(("cls", "mean", "patches")))
    fields: dict[str, Any] = {"block": block, "pool": pool, "decoder": "none"}
    fields["layer_scale"] = draw(st.booleans())
    allowed = {"position"} | ({"norm"} if block == "binary" else {"qkv_bias"})
    allowed |= {"cls": {"distillation"}, "mean": {"box"} if block == "binary" else set()}.get(
        pool, set()
    )
    for name in sorted(allowed):
        fields[name] = draw(st.sampled_from(IMPORTED[name]))
    if fields.get("distillation", "none") == "none":
        fields["last_norm"] = draw(st.sampled_from(IMPORTED["last_norm"]))
    elif block == "binary":
        fields |= {"similarity": "plain", "attention": "plain"}
    return draw(configs(**fields))


@st.composite
def configs(draw: st.DrawFn, **fixed: Any) -> Config:
    """Sizes that differ from one another, no multiples of 8 or 64; `fixed` are fields to keep."""
    block = fixed.get("block") or draw(st.sampled_from(("binary", "binary", "binary", "real")))
    fields = {"block": block, "pool": draw(st.sampled_from(POOLS))}
    fields["decoder"] = draw(st.sampled_from(DECODERS))
    if block == "binary":
        fields |= {name: draw(st.sampled_from(values)) for name, values in SWITCHES.items()}
    heads, head_dim, classes = draw(
        st.lists(st.integers(2, 7), min_size=3, max_size=3, unique=True).filter(
            lambda s: s[0] * s[1] % 8 and s[0] * s[1] != s[2]
        )
    )
    grid = draw(st.sampled_from(GRIDS))
    patch = draw(st.integers(1, 3))
    sizes = {
        "image_size": (grid[0] * patch, grid[1] * patch),
        "patch_size": patch,
        "channels": draw(st.integers(1, 3)),
        "dim": heads * head_dim,
        "depth": draw(st.integers(1, 3)),
        "heads": heads,
        "mlp_ratio": draw(st.integers(1, 4)),
        "num_classes": classes,
        "norm_eps": draw(st.sampled_from((1e-5, 1e-6, 1e-3))),
    }
    return Config(**{**sizes, **fields, **fixed})


def make(config: Config, seed: int, dtype: Any = np.float64, batch: int | None = None) -> Network:
    """Read-only parameters, images and gradient of the logits: a write into them raises.

    Without `batch` the number of images is one that no other size of the network equals.
    """
    rng = np.random.default_rng(seed)
    params = parameters(config, rng, dtype)
    batch = batch or min({2, 3, 4, 5, 6, 7} - _sizes(config))
    images = rng.standard_normal((batch, config.channels, *config.image_size)).astype(dtype)
    dlogits = rng.standard_normal((batch, *config.logits_shape)).astype(dtype)
    freeze((params, images, dlogits))
    return Network(VisionTransformer(config), params, images, dlogits)


def with_images_of(network: Network, grid: tuple[int, int], seed: int = 0) -> Network:
    """The same network with images of another size: `grid` rows and columns of patches."""
    config, (batch, channels, _, _) = network.model.config, network.images.shape
    config = config.replace(image_size=[side * config.patch_size for side in grid])
    rng, dtype = np.random.default_rng(seed), network.images.dtype
    images = rng.standard_normal((batch, channels, *config.image_size)).astype(dtype)
    dlogits = rng.standard_normal((batch, *config.logits_shape)).astype(dtype)
    freeze((images, dlogits))
    return network._replace(images=images, dlogits=dlogits)


def parameters(config: Config, rng: np.random.Generator, dtype: Any = np.float64) -> dict[str, Any]:
    """A random value of every parameter."""
    drawn = declared.draw(VisionTransformer(config).network.parameters, rng)
    return unflatten({path: value.astype(dtype) for path, value in drawn.items()})


def with_values(params: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy where every parameter whose dotted name ends in a key of `values` has that value."""
    flat = flatten(params)
    for end, value in values.items():
        paths = [path for path in flat if f".{path}".endswith(f".{end}")]
        assert paths, f"no parameter is called {end}"
        flat |= {path: np.full_like(flat[path], value) for path in paths}
    return unflatten(flat)


def arrays(tree: Any) -> Iterator[np.ndarray]:
    """Every array in nested dicts, lists and tuples: parameters, gradients, caches."""
    if isinstance(tree, np.ndarray):
        yield tree
    elif isinstance(tree, Mapping):
        yield from arrays(list(tree.values()))
    elif isinstance(tree, (list, tuple)):
        for branch in tree:
            yield from arrays(branch)


def freeze(tree: Any) -> None:
    """Make every array in `tree` read-only."""
    for array in arrays(tree):
        array.flags.writeable = False


def as_type(network: Network, dtype: Any) -> Network:
    """The same values in another float type."""
    params = unflatten({path: v.astype(dtype) for path, v in flatten(network.params).items()})
    images, dlogits = (array.astype(dtype) for array in (network.images, network.dlogits))
    return Network(network.model, params, images, dlogits)


@dataclasses.dataclass(frozen=True)
class Relisted(VisionTransformer):
    """A model that runs another list in the place of its own, on images of its own size."""

    listed: nodes.Network = dataclasses.field(compare=False, kw_only=True)

    @property
    def network(self) -> nodes.Network:
        return self.listed


def renamed(network: Network, seed: int = 0) -> tuple[Network, Callable[[str], str]]:
    """The same network where no value and no parameter has its name, and the new name of a tap.

    Names are numbers in random order: nothing can be read off them. Parameters, a flat dict, have
    their new names too. So whatever decides by a name shows: verdicts, bounds, causes, costs.
    """
    own = network.model.network
    names = {*own.parameters, *own.maker, *(v for n in own.nodes for v in n.inside.values())}
    order = np.random.default_rng(seed).permutation(len(names))
    new = {name: f"n{number}" for name, number in zip(sorted(names), order, strict=True)}

    def of_tap(tap: str) -> str:
        for prefix in ("grads/param.", "grads/"):
            if tap.startswith(prefix):
                return prefix + of_tap(tap.removeprefix(prefix))
        return new.get(tap, tap)  # "input" keeps its name

    model = Relisted(network.model.config, listed=list_renamed(own, new.__getitem__))
    params = {new[path]: value for path, value in flatten(network.params).items()}
    return network._replace(model=model, params=params), of_tap


def list_renamed(network: nodes.Network, name: Callable[[str], str]) -> nodes.Network:
    """The same list of operations under other names; the image keeps its own."""

    def other(old: str) -> str:
        return old if old == nodes.INPUT else name(old)

    def many(names: Iterable[str]) -> tuple[str, ...]:
        return tuple(map(other, names))

    listed = tuple(
        node._replace(
            name=other(node.name),
            inputs=many(node.inputs),
            params=many(node.params),
            outputs=many(node.outputs),
            inside={key: other(old) for key, old in node.inside.items()},
        )
        for node in network.nodes
    )
    return dataclasses.replace(
        network,
        nodes=listed,
        parameters={name(p): q._replace(path=name(p)) for p, q in network.parameters.items()},
        shapes={other(value): shape for value, shape in network.shapes.items()},
    )


def permuted(tree: Any, rng: np.random.Generator) -> Any:
    """The same nested dict, its keys in another order at every depth."""
    if not isinstance(tree, Mapping):
        return tree
    keys = list(tree)
    return {keys[i]: permuted(tree[keys[i]], rng) for i in rng.permutation(len(keys))}


def _sizes(config: Config) -> set[int]:
    return {config.dim, config.heads, config.head_dim, config.tokens, config.num_classes}
