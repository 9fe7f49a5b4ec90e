"""Configuration [SPEC 6.5, 9]: the fields, the named models, JSON, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl.conventions import ConfigError
from refimpl.models import Config, create_model
from refimpl.models.architectures import NAMES, named
from tests import networks

BASELINE = {
    "window": 0, "block": "binary", "pool": "cls", "decoder": "none", "binarize": "full",
    "ste": "polynomial",
    "layer_scale": False, "alpha_scope": "layer", "similarity": "plain", "attention": "plain",
    "rprelu": "channel", "context": "sum", "neighbours": "existing", "haar_mode": "edge",
    "haar_cls": "both", "band_weights": "learned",
}  # fmt: skip
FAMILIES = {
    "didb": {"norm_eps": 1e-5, **BASELINE, "similarity": "haar", "attention": "differential",
             "rprelu": "token"},
    "react": {"norm_eps": 1e-5, **BASELINE},
    "deit": {"norm_eps": 1e-6, **BASELINE, "block": "real"},
}  # fmt: skip
SIZES = {
    "micro": {"image_size": [28, 28], "channels": 1, "patch_size": 4, "dim": 64, "depth": 4,
              "heads": 2, "mlp_ratio": 4, "num_classes": 10},
    "cifar": {"image_size": [32, 32], "channels": 3, "patch_size": 4, "dim": 128, "depth": 4,
              "heads": 2, "mlp_ratio": 4, "num_classes": 10},
    "cifar_mean": {"image_size": [32, 32], "channels": 3, "patch_size": 4, "dim": 128, "depth": 4,
                   "heads": 2, "mlp_ratio": 4, "num_classes": 10, "pool": "mean"},
    "cifar_wide": {"image_size": [32, 32], "channels": 3, "patch_size": 4, "dim": 192, "depth": 4,
                   "heads": 3, "mlp_ratio": 4, "num_classes": 10, "pool": "mean"},
    "tiny": {"image_size": [224, 224], "channels": 3, "patch_size": 16, "dim": 192, "depth": 12,
             "heads": 3, "mlp_ratio": 4, "num_classes": 1000},
    "small": {"image_size": [224, 224], "channels": 3, "patch_size": 16, "dim": 384, "depth": 12,
              "heads": 6, "mlp_ratio": 4, "num_classes": 1000},
    "base": {"image_size": [224, 224], "channels": 3, "patch_size": 16, "dim": 768, "depth": 12,
             "heads": 12, "mlp_ratio": 4, "num_classes": 1000},
}  # fmt: skip


def refused(field: str, expected: str, **fields) -> None:
    """Both ways in refuse `fields` in one line that names `field` and says what was expected."""
    good = networks.small().to_json()
    for make in (lambda: Config(**{**good, **fields}), lambda: networks.small().replace(**fields)):
        with pytest.raises(ConfigError) as error:
            make()
        message = str(error.value)
        assert message.startswith("config: ") and field in message, message
        assert expected in message and "\n" not in message, message


# The named models


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", SIZES)
def test_named_model(family, size):
    assert create_model(f"{family}_{size}").config.to_json() == FAMILIES[family] | SIZES[size]


SWIN_SIZES = {
    "micro": {"image_size": [28, 28], "channels": 1, "patch_size": 2, "dim": 32, "depth": [2, 2],
              "heads": 2, "mlp_ratio": 4, "num_classes": 10, "window": 7, "pool": "mean"},
    "tiny": {"image_size": [224, 224], "channels": 3, "patch_size": 4, "dim": 96,
             "depth": [2, 2, 6, 2], "heads": 3, "mlp_ratio": 4, "num_classes": 1000, "window": 7,
             "pool": "mean"},
}  # fmt: skip
SWINS = {"didb_swin": FAMILIES["didb"], "react_swin": FAMILIES["react"],
         "swin": {**FAMILIES["deit"], "norm_eps": 1e-5}}  # fmt: skip


@pytest.mark.parametrize("family", SWINS)
@pytest.mark.parametrize("size", SWIN_SIZES)
def test_named_swin(family, size):
    assert create_model(f"{family}_{size}").config.to_json() == SWINS[family] | SWIN_SIZES[size]


def test_names():
    first = {f"{family}_{size}" for family in FAMILIES for size in SIZES}
    swins = {f"{family}_{size}" for family in SWINS for size in SWIN_SIZES}
    segmenters = {f"segmenter_{name}" for name in first | swins if "cifar" not in name}
    assert set(NAMES) == first | swins | segmenters
    assert len(NAMES) == 45


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [size for size in SIZES if not size.startswith("cifar")])
def test_named_segmenter(family, size):
    """Its backbone, for other images: those of scenes, or of ADE20K."""
    fields = create_model(f"segmenter_{family}_{size}").config.to_json()
    side, classes = (56, 11) if size == "micro" else (512, 150)
    changed = {"image_size": [side, side], "num_classes": classes, "decoder": "linear"}
    assert fields == {**SIZES[size], **FAMILIES[family], **changed}


@pytest.mark.parametrize("family", SWINS)
@pytest.mark.parametrize("size", SWIN_SIZES)
def test_named_swin_segmenter(family, size):
    config = create_model(f"segmenter_{family}_{size}").config
    side, classes = (56, 11) if size == "micro" else (448, 150)
    changed = {"image_size": [side, side], "num_classes": classes, "decoder": "fpn"}
    assert config.to_json() == {**SWINS[family], **SWIN_SIZES[size], **changed}
    linear = create_model(f"segmenter_{family}_{size}", decoder="linear").config
    assert linear.decoded_stage == linear.last_stage
    assert config.decoded_stage == next(config.stages) != config.last_stage


def test_a_pyramid_needs_stages():
    refused("decoder", "expected 'none' or 'linear', or a network with windows", decoder="fpn")


@pytest.mark.parametrize("name", ["didb", "didb_huge", "DIDB_micro", "vit_tiny", "", "didb_micro_"])
def test_an_unknown_name_lists_the_known_ones(name):
    with pytest.raises(ConfigError) as error:
        create_model(name)
    message = str(error.value)
    assert f"'{name}'" in message and "\n" not in message
    assert all(known in message for known in NAMES)


def test_overrides():
    config = named("didb_micro", image_size=(8, 12), depth=2, similarity="plain", norm_eps=1e-6)
    assert (config.image_size, config.depth) == ((8, 12), 2)
    assert (config.similarity, config.norm_eps) == ("plain", 1e-6)
    assert (config.attention, config.dim) == ("differential", 64)
    with pytest.raises(ConfigError, match="unknown field 'width'"):
        create_model("didb_micro", width=3)


def test_what_follows_from_the_fields():
    config = networks.small(image_size=(6, 8), patch_size=2, dim=10, heads=2)
    assert (config.grid, config.tokens, config.head_dim) == ((3, 4), 13, 5)
    assert config.replace(pool="mean").tokens == 12
    assert config.attention_inputs == ("q", "k", "v")
    haar = config.replace(similarity="haar")
    assert haar.attention_inputs == ("q_low", "k_low", "q_high", "k_high", "v")


# JSON


@given(networks.all_configs())
def test_json_round_trip(config):
    text = json.dumps(config.to_json())
    again = Config.from_json(json.loads(text))
    assert again == config and hash(again) == hash(config)
    assert json.dumps(again.to_json()) == text
    named = {f.name for f in dataclasses.fields(Config)}
    assert set(config.to_json()) == named - set(networks.IMPORTED)


@given(networks.configs(), st.integers(1, 5))
def test_replace_leaves_the_original(config, depth):
    before = config.to_json()
    replaced = config.replace(depth=depth)
    assert config.to_json() == before
    assert replaced.to_json() == {**before, "depth": depth}


def test_an_integer_image_size_is_a_square():
    config = networks.small(image_size=8)
    assert config.image_size == (8, 8) and config.to_json()["image_size"] == [8, 8]
    assert config == networks.small(image_size=[8, 8]) == networks.small(image_size=(8, 8))


def test_defaults_may_be_left_out_of_json_and_sizes_may_not():
    fields = networks.small().to_json()
    short = {name: value for name, value in fields.items() if name not in (*BASELINE, "norm_eps")}
    assert Config.from_json(short) == networks.small()
    for name in short:
        with pytest.raises(ConfigError, match=f"config: field '{name}' is missing"):
            Config.from_json({k: v for k, v in fields.items() if k != name})


@pytest.mark.parametrize("fields", [None, [], "didb_micro", 3])
def test_json_that_is_no_object(fields):
    with pytest.raises(ConfigError, match="config: found .*; expected an object"):
        Config.from_json(fields)


def test_an_unknown_field_lists_the_known_ones():
    with pytest.raises(ConfigError) as error:
        Config.from_json({**networks.small().to_json(), "patches": 3})
    message = str(error.value)
    assert "'patches'" in message and "patch_size" in message and "\n" not in message


def test_frozen():
    config = networks.small()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.depth = 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        create_model("didb_micro").config = config


# What is refused


def test_the_choices_are_those_of_the_spec():
    fields = {f.name: f.metadata.get("choices") for f in dataclasses.fields(Config)}
    choices = {name: set(values) for name, values in fields.items() if values}
    expected = {"block": {"binary", "real"}, "pool": {*networks.POOLS, "patches"}}
    expected["decoder"] = {*networks.DECODERS, "fpn"}
    switches = {**networks.SWITCHES, **networks.IMPORTED}
    del switches["merge_eps"]  # a number
    switches["binarize"] = (*switches["binarize"], "weights")  # of others
    expected |= {name: set(v) for name, v in switches.items() if not isinstance(v[0], bool)}
    assert choices == expected


@pytest.mark.parametrize("field", ["block", "pool", "decoder", *networks.SWITCHES,
                                   *sorted({*networks.IMPORTED} - {"merge_eps"})])  # fmt: skip
@pytest.mark.parametrize("value", ["FULL", "", None, 1, 0.5, ["full"]])
def test_a_choice_that_does_not_exist(field, value):
    refused(field, "expected", **{field: value})


@pytest.mark.parametrize("field", [
    "patch_size", "channels", "dim", "depth", "heads", "mlp_ratio", "num_classes",
])  # fmt: skip
@pytest.mark.parametrize("value", [0, -2, 2.0, "2", None, True, [2], math.nan])
def test_a_size_that_is_no_positive_integer(field, value):
    refused(field, "expected a whole number of at least 1", **{field: value})


@pytest.mark.parametrize("value", [
    0, -2, 2.0, "8", None, True, (4, 0), (4, 6.0), (True, 4), ("4", "6"),
])  # fmt: skip
def test_an_image_size_that_is_no_positive_integer(value):
    refused("image_size", "expected a whole number of at least 1", image_size=value)


@pytest.mark.parametrize("value", [(4,), (4, 6, 3), (), []])
def test_an_image_size_that_is_no_pair(value):
    refused("image_size", "expected (height, width)", image_size=value)


@pytest.mark.parametrize("value", [5, (4, 5), (5, 4), (1, 1)])
def test_patches_must_tile_the_image(value):
    refused("image_size", "expected a multiple of patch_size 2", image_size=value)


def test_heads_must_divide_the_channels():
    refused("dim", "expected a multiple of heads 3", dim=10, heads=3)


@pytest.mark.parametrize("value", [0, 1, -1e-5, 2.0, math.nan, math.inf, "1e-5", None, True])
def test_norm_eps_must_be_small_and_positive(value):
    refused("norm_eps", "expected a number between 0 and 1", norm_eps=value)


@pytest.mark.parametrize("field", sorted({*networks.SWITCHES, "norm", "box"} - {"layer_scale"}))
def test_real_blocks_refuse_the_switches_of_binary_ones(field):
    baseline, *others = {**networks.SWITCHES, **networks.IMPORTED}[field]
    assert networks.small(block="real", **{field: baseline}).block == "real"
    for value in others:
        refused(field, f"expected it left at {baseline!r}", block="real", **{field: value})
        with pytest.raises(ConfigError, match=field):
            create_model("deit_micro", **{field: value})


def test_the_class_of_a_pixel_is_a_byte() -> None:
    assert named("segmenter_didb_micro", num_classes=255).num_classes == 255
    with pytest.raises(ConfigError, match="num_classes is 256; expected at most 255"):
        named("segmenter_didb_micro", num_classes=256)
    assert named("didb_micro", num_classes=1000).num_classes == 1000
