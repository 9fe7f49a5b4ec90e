"""Writes the golden bundles of weights/golden anew; what is there is replaced.

    python -m tests.make_golden_bundles [NAME...]

The seeds are fixed. Another version of NumPy may give other last digits of reals; bits and whole
numbers of the tie-free bundle stay what they are.
"""

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from refimpl.data import bundled, images
from refimpl.data.preprocessing import Preprocessing
from refimpl.golden import adversarial, search, store
from refimpl.models import Config, VisionTransformer, create_model, files

FOLDER = Path(__file__).parent.parent / "weights" / "golden"
DIGIT = "7_0000.png"
# Sizes that differ from one another, rows and channels no multiples of 8, hidden one off a word.
SMALL = Config(
    image_size=(6, 8), patch_size=2, channels=5, dim=21, depth=2, heads=3, mlp_ratio=3,
    num_classes=11, similarity="haar", attention="differential", rprelu="token", layer_scale=True,
)  # fmt: skip
# Three images, whose tokens are averaged, on a grid that wraps; of one head alpha is negative.
BATCH = Config(
    image_size=(6, 8), patch_size=2, channels=2, dim=12, depth=1, heads=3, mlp_ratio=3,
    num_classes=7, similarity="haar", attention="differential", rprelu="token", pool="mean",
    haar_mode="periodic", neighbours="eight", alpha_scope="head", ste="clip",
)  # fmt: skip
# Rows of 256 bits into `mlp.down`, heads of 128.
WIDE = Config(
    image_size=(4, 6), patch_size=2, channels=3, dim=128, depth=1, heads=1, mlp_ratio=2,
    num_classes=5, rprelu="token",
)  # fmt: skip
# 260 keys.
LONG = Config(
    image_size=(40, 26), patch_size=2, channels=1, dim=5, depth=1, heads=1, mlp_ratio=2,
    num_classes=4, pool="mean",
)  # fmt: skip
# Windows of 2 on a grid of 4 x 8, the second block's shifted, and on the merged one of 2 x 4.
SWIN = Config(
    image_size=(8, 16), patch_size=2, channels=2, dim=6, depth=(2, 1), heads=2, mlp_ratio=2,
    num_classes=5, window=2, pool="mean", similarity="haar", attention="differential",
    rprelu="token",
)  # fmt: skip
DEIT = Config(
    image_size=(6, 8), patch_size=2, channels=2, dim=12, depth=2, heads=3, mlp_ratio=2,
    num_classes=7, block="real", norm_eps=1e-6,
)  # fmt: skip
LARGE_MEAN = 4096.0
FAR_APART = 64.0  # times the weights of a head's bands
EQUAL = 1024.0  # a shift that makes all bits of a token equal


def small_tie_free(path: Path) -> None:
    model = VisionTransformer(SMALL)
    params, image = search.draw(SMALL, seed=0)
    found = search.tie_free(model, params, image, seed=0)
    note = {"attempts": found.attempts, "seed": 0}
    store.make(path, model, params, found.images, grads=True, kind="tie-free", search=note)


def small_adversarial(path: Path) -> None:
    model, params, image = adversarial.case(seed=0)
    store.make(path, model, params, image, grads=True, kind="adversarial")


def didb_micro_mnist(path: Path) -> None:
    file = files.read("didb_micro_mnist")
    image = digit(file.model.preprocessing)
    store.make(path, file.model, file.params, image, taps="block")


def react_micro(path: Path) -> None:
    model = create_model("react_micro")
    params, _ = search.draw(model.config, seed=0)
    image = digit(Preprocessing(size=(28, 28), mode="grey", mean=(0.5,), std=(0.25,)))
    store.make(path, model, params, image, taps="block")


def small_batch(path: Path) -> None:
    """Images that take part in one another's nothing, and an alpha below its minimum."""
    params, images = search.draw(BATCH, seed=0, images=3)
    block = params["blocks"]["0"]
    block["attn"]["alpha"][1] = -0.15  # no gradient: the two other heads have one
    for unit in (block["attn"], block["attn"]["q_low"], block["mlp"]["up"]):
        unit["rprelu"]["slope"][3] = 1.5  # the larger of u and slope u is another number then
    store.make(path, VisionTransformer(BATCH), params, images, grads=True)


def small_wide(path: Path) -> None:
    """Sums that do not fit into 8 bits, and rows that one pass over their squares loses."""
    params, image = search.draw(WIDE, seed=0)
    params["pos_embed"][0, 2] += LARGE_MEAN
    params["pos_embed"][0, 5] -= LARGE_MEAN
    attention, mlp = params["blocks"]["0"]["attn"], params["blocks"]["0"]["mlp"]
    mlp["down"]["weight"][3] = 0.5  # Wc is exactly 0: all bits 1, so products of 256 and of -256
    for unit in (attention["q"], attention["k"], mlp["up"]):
        unit["rprelu"]["token_shift_out"][[1, 4]] = EQUAL, -EQUAL
    without_weights = ["*[!z]", "*[!t].z", "*_z"]  # centred, which are as large as all else
    store.make(path, VisionTransformer(WIDE), params, image, taps=without_weights)


def small_long(path: Path) -> None:
    """Rows of the attention with more than 256 bits, nearly all 1."""
    params, image = search.draw(LONG, seed=0)
    attention = params["blocks"]["0"]["attn"]
    attention["alpha"] = np.float32(2e-3)
    attention["v_move"][:2] = EQUAL, -EQUAL
    # three large tables less: the scores, their whole numbers, and q
    without_scores = ["io", "tokens", "*[!szt]", "*[!n]t", "*[!s].int", "*[!b].z", "*_z"]
    store.make(path, VisionTransformer(LONG), params, image, taps=without_scores)


def small_swin(path: Path) -> None:
    """All but what the last block has like the others; gradients of windows, merge and image."""
    params, images = search.draw(SWIN, seed=0, images=2)
    # scores so far apart that -100 hides no key: one for a masked key is one too small
    params["blocks"]["1"]["attn"]["band_weight"][:, 1] *= FAR_APART
    grads = ("input", "tokens", "blocks.1.attn.*", "merges.*", "param.*position_bias",
             "param.patch_embed.*", "param.embed_norm.*", "param.merges.*")  # fmt: skip
    taps = ["[!bg]*", "blocks.[01].*", "blocks.2.mid", "blocks.2.out"]
    taps += [f"grads/{name}" for name in grads]
    store.make(path, VisionTransformer(SWIN), params, images, grads=True, taps=taps)


def small_deit(path: Path) -> None:
    params, images = search.draw(DEIT, seed=0, images=2)
    store.make(path, VisionTransformer(DEIT), params, images, grads=True)


BUNDLES: dict[str, Callable[[Path], None]] = {
    bundle.__name__: bundle
    for bundle in (
        small_tie_free, small_adversarial, didb_micro_mnist, react_micro, small_batch, small_wide,
        small_long, small_swin, small_deit,
    )
}  # fmt: skip


def digit(preprocessing: Preprocessing) -> np.ndarray:
    """(1, 1, 28, 28), float32."""
    image = images.open_image(bundled.mnist() / DIGIT)
    return preprocessing.apply(image)[None].astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the golden bundles anew.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BUNDLES))
    for name in parser.parse_args().names or BUNDLES:
        shutil.rmtree(FOLDER / name, ignore_errors=True)
        FOLDER.mkdir(exist_ok=True)
        BUNDLES[name](FOLDER / name)
        print(FOLDER / name)


if __name__ == "__main__":
    main()
