"""Families of checkpoints: how each is recognised, what shapes say, what tensors are called.

Every family gives fields of `Config`, and for each of our parameters the keys whose tensors it is
made of: one, several that are joined (queries, keys, values), or none where the start value stays.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from refimpl.conventions import ConfigError
from refimpl.importing.said import Said
from refimpl.models import Config
from refimpl.models.config import hidden_channels

Names = tuple[tuple[str, tuple[str, ...]], ...]  # our path as a pattern, their keys


class Tensors:
    """The arrays of a checkpoint, asked for what they tell."""

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self.arrays = arrays

    def __contains__(self, key: str) -> bool:
        return key in self.arrays

    def shape(self, key: str, rank: int) -> tuple[int, ...]:
        """The shape of a tensor that must be there, with `rank` axes and no empty one."""
        if key not in self.arrays:
            raise ConfigError(f"{key}: missing; expected a tensor of {rank} axes")
        shape = self.arrays[key].shape
        if len(shape) != rank or 0 in shape:
            raise ConfigError(f"{key}: shape {shape}; expected {rank} axes, none of them empty")
        return shape

    def count(self, pattern: str) -> int:
        """How many numbers a part of the keys goes through, from 0 on."""
        found = (re.match(pattern, key) for key in self.arrays)
        # a name may be anything: more digits than a depth has are none
        return 1 + max((int(m[1]) for m in found if m and len(m[1]) < 7), default=0)


class Family(NamedTuple):
    """One way of writing a network down."""

    name: str
    mark: str  # pattern of a key that it has, and none of those before it
    config: Callable[[Tensors, Said], dict[str, Any]]
    keys: Callable[[str, Config, Tensors], tuple[str, ...]]
    aliases: tuple[tuple[str, str], ...] = ()  # other names of the same keys
    ignored: str = r"$^"  # pattern of keys that hold nothing of the network


def family_of(keys: Sequence[str]) -> Family:
    """The family whose mark is among the keys; ConfigError names one that none has."""
    for family in FAMILIES:
        if any(re.search(family.mark, key) for key in keys):
            return family
    known = ", ".join(family.name for family in FAMILIES)
    raise ConfigError(f"{next(iter(keys), '')}: a key of no known family; expected {known}")


def _translate(path: str, names: Names) -> tuple[str, ...]:
    for pattern, templates in names:
        if match := re.match(pattern, path):
            return tuple(match.expand(key) + path[match.end() :] for key in templates)
    return (path,)


# --- what all share -------------------------------------------------------------------------------


def _embedding(t: Tensors, said: Said, key: str) -> dict[str, Any]:
    dim, channels, rows, columns = t.shape(key, 4)
    if rows != columns:
        raise ConfigError(f"{key}: patches of {rows} x {columns}; expected squares")
    said.agree(key, dim, "embed_dim" if said.find("embed_dim") else "hidden_size")
    said.agree(key, channels, "num_channels", "in_chans")
    patch = said.find("patch_size")
    if patch is None or patch.value != [rows, rows]:  # as it may be said, too
        said.agree(key, rows, "patch_size")
    return {"dim": dim, "channels": channels, "patch_size": rows}


def _ratio(t: Tensors, said: Said, key: str) -> float:
    hidden, dim = t.shape(key, 2)
    said.agree(key, hidden, "intermediate_size")
    ratio = said.number("mlp_ratio")
    if ratio is not None and not hidden <= ratio * dim < hidden + 1:  # rounded down
        raise said.find("mlp_ratio").wrong(f"one that gives {hidden} hidden channels, as {key}")
    return hidden / dim if hidden % dim else hidden // dim


def _one_ratio(t: Tensors, said: Said, keys: Sequence[str]) -> float:
    """The ratio of all stages, each of which rounds down the hidden channels that it gives."""
    ratio = max(_ratio(t, said, key) for key in keys)
    for key in keys:
        hidden, dim = t.shape(key, 2)
        if hidden != (expected := hidden_channels(ratio, dim)):
            raise ConfigError(
                f"{key}: {hidden} hidden channels for {dim}, an mlp_ratio of {hidden / dim:.9g}; "
                f"expected {expected}, as that of another stage, {ratio:.9g}, gives"
            )
    return ratio


def _whole_ratio(t: Tensors, said: Said, key: str) -> int:
    hidden, dim = t.shape(key, 2)
    if hidden % dim:
        raise ConfigError(f"{key}: {hidden} rows for {dim} channels; expected a multiple of them")
    return int(_ratio(t, said, key))


def _classes(t: Tensors, said: Said, key: str) -> int:
    classes = t.shape(key, 2)[0]
    said.agree(key, classes, "num_classes", "num_labels", "nb_classes")
    names = said.find("id2label")
    if names is not None and isinstance(names.value, Mapping) and len(names.value) != classes:
        raise ConfigError(
            f"{names.where}: id2label has {len(names.value)} classes; "
            f"expected {classes}, as {key} has them"
        )
    return classes


def _grid(t: Tensors, said: Said, key: str, patch: int, front: int) -> dict[str, Any]:
    """Size of the images and place of the position embedding, which may leave out the front."""
    tokens = t.shape(key, 3)[1]
    if (given := said.image_size()) is not None:
        found, size = given
        patches = (size[0] // patch) * (size[1] // patch)
        if tokens not in (patches, patches + front):
            raise found.wrong(f"one for the {tokens} tokens of {key}, with patches of {patch}")
        return {"image_size": size, "position": _position(tokens, patches, front)}
    for patches in (tokens - front, tokens):
        side = math.isqrt(max(patches, 0))
        if side and side * side == patches:
            position = _position(tokens, patches, front)
            return {"image_size": (side * patch, side * patch), "position": position}
    raise ConfigError(f"{key}: {tokens} tokens are no square; expected the images' size, by --size")


def _position(tokens: int, patches: int, front: int) -> str:
    return "patches" if front and tokens == patches else "usual"


def _real(said: Said, eps: float, *names: str) -> dict[str, Any]:
    for name in ("hidden_act", "act_layer"):
        said.only(name, "gelu")
    found = said.number(*names) if names else None
    return {"block": "real", "norm_eps": eps if found is None else found}


# --- timm: ViT and DeiT ---------------------------------------------------------------------------

# Heads of architectures that are known by name; a checkpoint of facebookresearch/deit says no more.
_HEADS = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12), "large": (1024, 16),
          "huge": (1280, 16)}  # fmt: skip
_POOLS = {"token": "cls", "avg": "mean"}


def _heads_by_name(said: Said, dim: int) -> int | None:
    found = said.find("architecture", "arch", "model")
    if found is None or not isinstance(found.value, str):
        return None
    match = re.match(r"(?:vit|deit|deit3)_(tiny|small|base|large|huge)_", found.value)
    if match and _HEADS[match[1]][0] != dim:
        raise found.wrong(f"one with {dim} channels, as patch_embed.proj.weight has them")
    return _HEADS[match[1]][1] if match else None


def _timm_vit(t: Tensors, said: Said) -> dict[str, Any]:
    fields = _embedding(t, said, "patch_embed.proj.weight")
    for name in ("norm_layer", "mlp_layer", "block_fn", "embed_layer", "qk_norm", "attn_layer"):
        said.only(name, False)
    said.only("pool_include_prefix", False)
    _require_pre_norm(said)
    depth = t.count(r"blocks\.(\d+)\.")
    said.agree("blocks", depth, "depth")
    heads = said.whole("num_heads", "num_attention_heads") or _heads_by_name(said, fields["dim"])
    heads = heads or said.required("the number of heads", "num_heads")
    front = ("cls_token" in t) + ("dist_token" in t)
    pooled = "fc_norm.weight" in t
    said.only("global_pool", *_POOLS)
    pool = said.find("global_pool")
    pool = _POOLS[pool.value] if pool else ("mean" if pooled or "cls_token" not in t else "cls")
    if pool == "cls" and "cls_token" not in t:
        raise said.find("global_pool").wrong("'avg', since there is no cls_token")
    return {
        **fields,
        **_grid(t, said, "pos_embed", fields["patch_size"], front),
        **_real(said, 1e-6, "norm_eps"),
        "depth": depth,
        "heads": heads,
        "mlp_ratio": _ratio(t, said, "blocks.0.mlp.fc1.weight"),
        "num_classes": _classes(t, said, "head.weight"),
        "pool": "patches" if pool == "mean" and "cls_token" in t else pool,
        "last_norm": "pooled" if pooled else "tokens",
        "distillation": "head" if "dist_token" in t else "none",
        "layer_scale": "blocks.0.ls1.gamma" in t,
        "qkv_bias": "blocks.0.attn.qkv.bias" in t,
    }


def _require_pre_norm(said: Said) -> None:
    """timm's networks with norms behind the residuals have the same keys, and another name."""
    name = said.find("architecture", "model")
    if name and isinstance(name.value, str) and "_rpn_" in name.value:
        raise name.wrong("a network with norms in front, which this one's keys look like")


def _timm_vit_keys(path: str, config: Config, t: Tensors) -> tuple[str, ...]:
    last = "fc_norm." if config.last_norm == "pooled" else "norm."
    names = ((r"patch_embed\.", ("patch_embed.proj.",)), (r"norm\.", (last,)))
    return _translate(path, names)


# --- transformers: ViT and DeiT -------------------------------------------------------------------

# As the modules are called in transformers 5, which its files are not.
_IN_MEMORY = (
    (r"^(vit|deit)\.layers\.(\d+)\.", r"\1.encoder.layer.\2."),
    (r"\.attention\.([qkv])_proj\.", r".attention.SELF.\1."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
    (r"\.relative_position_bias\.relative_position_bias_table$",
     ".self.relative_position_bias_table"),
    *((rf"\.SELF\.{t}\.", rf".SELF.{name}.") for t, name in zip("qkv", ("query", "key", "value"))),
    (r"^(vit|deit)\.(.*)\.SELF\.", r"\1.\2.attention."),
    (r"\.SELF\.", ".self."),
)  # fmt: skip


def _prefix(t: Tensors) -> str:
    return "deit" if any(key.startswith("deit.") for key in t.arrays) else "vit"


def _hf_vit(t: Tensors, said: Said) -> dict[str, Any]:
    p = _prefix(t)
    fields = _embedding(t, said, f"{p}.embeddings.patch_embeddings.projection.weight")
    depth = t.count(rf"{p}\.encoder\.layer\.(\d+)\.")
    said.agree(f"{p}.encoder.layer", depth, "num_hidden_layers")
    heads = said.required("the number of heads", "num_attention_heads")
    distilled = f"{p}.embeddings.distillation_token" in t
    head = "cls_classifier" if "cls_classifier.weight" in t else "classifier"
    real = _real(said, 1e-12, "layer_norm_eps")
    if said.find("replace_ln_bn"):  # BinaryViT's scripts give its teacher an eps of their own
        real["norm_eps"] = 1e-5
    first = f"{p}.encoder.layer.0"
    return {
        **fields,
        **_grid(t, said, f"{p}.embeddings.position_embeddings", fields["patch_size"],
                1 + distilled),
        **real,
        "depth": depth,
        "heads": heads,
        "mlp_ratio": _ratio(t, said, f"{first}.intermediate.dense.weight"),
        "num_classes": _classes(t, said, f"{head}.weight"),
        "distillation": {"classifier": "token", "cls_classifier": "head"}[head] if distilled
        else "none",
        "qkv_bias": f"{first}.attention.attention.query.bias" in t,
    }  # fmt: skip


def _joined(place: str) -> tuple[str, ...]:
    return tuple(f"{place}.{t}" for t in ("query", "key", "value"))


def _hf_block(ours: str, theirs: str) -> Names:
    """Names below a block: a pattern of our path's beginning, and what theirs begins with."""
    return (
        (rf"{ours}norm1", (rf"{theirs}layernorm_before",)),
        (rf"{ours}norm2", (rf"{theirs}layernorm_after",)),
        (rf"{ours}attn\.proj", (rf"{theirs}attention.output.dense",)),
        (rf"{ours}mlp\.fc1", (rf"{theirs}intermediate.dense",)),
        (rf"{ours}mlp\.fc2", (rf"{theirs}output.dense",)),
    )


def _hf_vit_keys(path: str, config: Config, t: Tensors) -> tuple[str, ...]:
    p = _prefix(t)
    layer, heads = rf"{p}.encoder.layer.\1.", config.distillation == "head"
    return _translate(path, (
        (r"patch_embed\.", (f"{p}.embeddings.patch_embeddings.projection.",)),
        (r"cls_token", (f"{p}.embeddings.cls_token",)),
        (r"dist_token", (f"{p}.embeddings.distillation_token",)),
        (r"pos_embed", (f"{p}.embeddings.position_embeddings",)),
        (r"blocks\.(\d+)\.attn\.qkv", _joined(f"{layer}attention.attention")),
        *_hf_block(r"blocks\.(\d+)\.", layer),
        (r"norm\.", (f"{p}.layernorm.",)),
        (r"head\.", ("cls_classifier." if heads else "classifier.",)),
        (r"head_dist\.", ("distillation_classifier.",)),
    ))  # fmt: skip


# --- Swin -----------------------------------------------------------------------------------------


_STAGES_AT_MOST = 10  # each has half the grid of the one before


def _swin_windows(t: Tensors, said: Said, table: str, depths: list[int]) -> dict[str, Any]:
    """Window and heads of stage 0, from the tables of relative positions."""
    windows, first = [], t.shape(table.format(0), 2)[1]
    for stage in range(len(depths)):
        key = table.format(stage)
        rows, heads = t.shape(key, 2)
        side = math.isqrt(rows)
        if side * side != rows or side % 2 == 0:
            raise ConfigError(f"{key}: {rows} rows; expected the square of an odd number")
        windows.append((side + 1) // 2)
        if heads != first * 2**stage:
            raise ConfigError(f"{key}: {heads} heads; expected {first * 2**stage}")
    return {"window": max(windows), "heads": first}


def _swin_sizes(
    t: Tensors, said: Said, table: str, stage: str, mlp: str, head: str
) -> dict[str, Any]:
    stages = t.count(rf"{stage}(\d+)\.")
    if stages > _STAGES_AT_MOST:
        raise ConfigError(f"{stages} stages; expected at most {_STAGES_AT_MOST}")
    depths = [t.count(rf"{stage}{i}\.blocks\.(\d+)\.") for i in range(stages)]
    said.agree(stage.replace("\\", ""), depths, "depths")
    windows = _swin_windows(t, said, table, depths)
    heads = said.find("num_heads")
    if heads is not None and heads.value != [windows["heads"] * 2**i for i in range(stages)]:
        raise heads.wrong(f"{windows['heads']} and twice as many a stage, as its tables have them")
    size = said.image_size()
    if size is None:
        raise ConfigError("the size of the images is not in the checkpoint; expected --size")
    return {
        **windows,
        "depth": depths,
        "image_size": size[1],
        "mlp_ratio": _one_ratio(t, said, [mlp.format(i) for i in range(stages)]),
        "num_classes": _classes(t, said, head),
        "pool": "mean",
    }


def _timm_swin(t: Tensors, said: Said) -> dict[str, Any]:
    said.only("global_pool", "avg")
    block = "layers.0.blocks.0"
    return {
        **_embedding(t, said, "patch_embed.proj.weight"),
        **_swin_sizes(
            t, said, "layers.{}.blocks.0.attn.relative_position_bias_table", r"layers\.",
            "layers.{}.blocks.0.mlp.fc1.weight", f"{_swin_head(t)}.weight"),
        **_real(said, 1e-5),
        "position": "patches" if "absolute_pos_embed" in t else "usual",
        "qkv_bias": f"{block}.attn.qkv.bias" in t,
    }  # fmt: skip


def _swin_head(t: Tensors) -> str:
    return "head.fc" if "head.fc.weight" in t else "head"


def _stages(path: str, config: Config) -> str:
    """Blocks, which we count through the whole network, by stage and number."""
    if match := re.match(r"blocks\.(\d+)\.", path):
        stage, block = config.place_of(int(match[1]))
        return f"layers.{stage}.blocks.{block}.{path[match.end() :]}"
    return path


def _timm_swin_keys(path: str, config: Config, t: Tensors) -> tuple[str, ...]:
    # timm before 0.9 and microsoft merge at the end of a stage, timm since then at its beginning
    after = 0 if any(key.startswith("layers.0.downsample.") for key in t.arrays) else 1
    if match := re.match(r"merges\.(\d+)\.(norm|proj)", path):
        part = {"norm": "norm", "proj": "reduction"}[match[2]]
        return (f"layers.{int(match[1]) + after}.downsample.{part}{path[match.end() :]}",)
    return _translate(_stages(path, config), (
        (r"patch_embed\.", ("patch_embed.proj.",)),
        (r"embed_norm\.", ("patch_embed.norm.",)),
        (r"pos_embed", ("absolute_pos_embed",)),
        (r"(.*\.attn\.)position_bias", (r"\1relative_position_bias_table",)),
        (r"head\.", (f"{_swin_head(t)}.",)),
    ))  # fmt: skip


def _hf_swin(t: Tensors, said: Said) -> dict[str, Any]:
    stage, block = r"swin\.encoder\.layers\.", "swin.encoder.layers.{}.blocks.0"
    real = _real(said, 1e-5, "layer_norm_eps")
    table = f"{block}.attention.self.relative_position_bias_table"
    return {
        **_embedding(t, said, "swin.embeddings.patch_embeddings.projection.weight"),
        **_swin_sizes(t, said, table, stage, f"{block}.intermediate.dense.weight",
                      "classifier.weight"),
        **real,
        # whatever the configuration says, its embedding and merges have PyTorch's own
        "merge_eps": None if real["norm_eps"] == 1e-5 else 1e-5,
        "position": "patches" if "swin.embeddings.position_embeddings" in t else "usual",
        "qkv_bias": f"{block}.attention.self.query.bias".format(0) in t,
    }  # fmt: skip


def _hf_swin_keys(path: str, config: Config, t: Tensors) -> tuple[str, ...]:
    place = r"swin.encoder.\1"
    ours = r"(layers\.\d+\.blocks\.\d+\.)"
    return _translate(_stages(path, config), (
        (r"patch_embed\.", ("swin.embeddings.patch_embeddings.projection.",)),
        (r"embed_norm\.", ("swin.embeddings.norm.",)),
        (r"pos_embed", ("swin.embeddings.position_embeddings",)),
        (rf"{ours}attn\.qkv", _joined(f"{place}attention.self")),
        (rf"{ours}attn\.position_bias", (f"{place}attention.self.relative_position_bias_table",)),
        *_hf_block(ours, place),
        (r"merges\.(\d+)\.norm", (r"swin.encoder.layers.\1.downsample.norm",)),
        (r"merges\.(\d+)\.proj", (r"swin.encoder.layers.\1.downsample.reduction",)),
        (r"norm\.", ("swin.layernorm.",)),
        (r"head\.", ("classifier.",)),
    ))  # fmt: skip


# --- BinaryViT: ReActNet's recipe on DeiT ---------------------------------------------------------

_LEAVES = {"running_variance": "running_var", "slope": "prelu.weight", "shift_in": "move1",
           "shift_out": "move2", "beta": "move"}  # fmt: skip
_STAGES = {(1, 1): "full", (32, 1): "activations", (1, 32): "weights", (32, 32): "none"}


def _binaryvit(t: Tensors, said: Said) -> dict[str, Any]:
    for key in t.arrays:
        if ".patch_embed1." in key or key.endswith(".mover"):
            raise ConfigError(f"{key}: of BinaryViT's pyramid; expected its DeiT, 'extra-res'")
    fields = _embedding(t, said, "vit.embeddings.patch_embeddings.projection.weight")
    layer = "vit.encoder.layer.0"
    cls = "vit.embeddings.cls_token" in t
    depth = t.count(r"vit\.encoder\.layer\.(\d+)\.")
    said.agree("vit.encoder.layer", depth, "num_hidden_layers")
    box = "+".join(k for k in "35" if f"{layer}.layerscale_h{k}.alpha" in t) or "none"
    batch = "vit.layernorm.running_mean" in t
    scaled = f"{layer}.output.layerscale.alpha" in t
    for name, value in (("replace_ln_bn", batch), ("enable_cls_token", cls),
                        ("disable_layerscale", not scaled), ("avg_res3", "3" in box),
                        ("avg_res5", "5" in box), ("some_fp", False)):  # fmt: skip
        said.agree("the checkpoint", value, name)
    bits = said.required("the number of bits of weights", "weight_bits")
    inputs = 1 if f"{layer}.attention.attention.att_prob_clip" in t else 32
    said.agree("the checkpoint", inputs, "input_bits")
    if (bits, inputs) not in _STAGES:
        raise said.find("weight_bits").wrong("1 or 32")
    return {
        **fields,
        **_grid(t, said, "vit.embeddings.position_embeddings", fields["patch_size"], int(cls)),
        "depth": depth,
        "heads": said.required("the number of heads", "num_attention_heads"),
        "mlp_ratio": _whole_ratio(t, said, f"{layer}.intermediate.dense.weight"),
        "num_classes": _classes(t, said, "classifier.weight"),
        "norm_eps": 1e-5,  # whatever the configuration says
        "pool": "cls" if cls else "mean",
        "norm": "batch" if batch else "layer",
        "layer_scale": scaled,
        "box": box,
        "binarize": _STAGES[bits, inputs],
    }


def _binaryvit_keys(path: str, config: Config, t: Tensors) -> tuple[str, ...]:
    if path.endswith("attn.alpha") and not config.has_signs:
        return ()  # nothing is compared with it
    block, layer = r"blocks\.(\d+)\.", r"vit.encoder.layer.\1."
    own, leaves = f"{layer}attention.attention.", {}
    for u, name in zip("qkv", ("query", "key", "value"), strict=True):
        leaves[rf"attn\.{u}_move"] = f"{own}move{u}2"
        leaves[rf"attn\.{u}\.move"] = f"{own}move{u}"
        leaves[rf"attn\.{u}\.weight"] = f"{own}{name}.weight"
        leaves[rf"attn\.{u}\.norm"] = f"{own}norm{u}"
        leaves[rf"attn\.{u}\.rprelu"] = f"{own}rprelu{u}"
    leaves |= {r"attn\.alpha": f"{own}att_prob_clip", r"attn\.norm": f"{own}norm_context",
               r"attn\.rprelu": f"{own}rprelu_context"}  # fmt: skip
    for ours, theirs in ((r"attn\.proj", "attention.output"), (r"mlp\.up", "intermediate"),
                         (r"mlp\.down", "output")):  # fmt: skip
        leaves[rf"{ours}\.weight"] = f"{layer}{theirs}.dense.weight"
        leaves[ours] = f"{layer}{theirs}"
    leaves |= {"scale1": f"{layer}attention.output.layerscale",
               "scale2": f"{layer}output.layerscale",
               r"box(\d)\.rows": rf"{layer}layerscale_h\2",
               r"box(\d)\.columns": rf"{layer}layerscale_w\2",
               "norm1": f"{layer}layernorm_before", "norm2": f"{layer}layernorm_after"}  # fmt: skip
    names = [(block + ours, (theirs,)) for ours, theirs in leaves.items()]
    (key,) = _translate(path, (
        (r"patch_embed\.", ("vit.embeddings.patch_embeddings.projection.",)),
        (r"cls_token", ("vit.embeddings.cls_token",)),
        (r"pos_embed", ("vit.embeddings.position_embeddings",)),
        *names,
        (r"norm\.", ("vit.layernorm.",)),
        (r"head\.", ("classifier.",)),
    ))  # fmt: skip
    place, _, leaf = key.rpartition(".")
    return (f"{place}.{_LEAVES.get(leaf, leaf)}",)


# In this order: the mark of a later one may be found in an earlier one, too.
FAMILIES = (
    Family("BinaryViT", r"\.moveq$", _binaryvit, _binaryvit_keys,
           ignored=r"\.num_batches_tracked$"),
    Family("Swin of transformers", r"^swin\.embeddings\.patch_embeddings\.", _hf_swin,
           _hf_swin_keys, _IN_MEMORY, r"\.relative_position_index$"),
    Family("ViT and DeiT of transformers", r"^(vit|deit)\.embeddings\.patch_embeddings\.",
           _hf_vit, _hf_vit_keys, _IN_MEMORY),
    Family("Swin of timm", r"^layers\.0\.blocks\.0\.attn\.relative_position_bias_table$",
           _timm_swin, _timm_swin_keys, ignored=r"\.(relative_position_index|attn_mask)$"),
    Family("ViT and DeiT of timm", r"^blocks\.0\.attn\.qkv\.weight$", _timm_vit, _timm_vit_keys),
)  # fmt: skip
