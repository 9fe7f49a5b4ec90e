"""Hostile sizes: every verb ends within 2 GB of what it takes for an ordinary image.

A verb runs in a process of its own whose address space the operating system limits: an ordinary
run says how much that verb needs, and the hostile one gets 2 GB more.
"""

from __future__ import annotations

import functools
import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import refimpl
from refimpl import classifiers, training
from refimpl.conventions import ConfigError, DataError, ModelFileError
from refimpl.data import datasets, images, mnist
from refimpl.data.preprocessing import MAX_PIXELS, Preprocessing
from refimpl.models import files, summary
from refimpl.segmenters import ENLARGED, Segmenter
from refimpl.training.batches import parts
from tests.command_line import (
    PATIENCE,
    SEVEN,
    SMALL,
    assert_one_line,
    run,
    save_model,
    save_segmenter,
)
from tests.make_samples import write_idx
from tests.test_data import encoded, idx_bytes, png_chunk
from tests.test_segmenter import picture, small

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, limits by rlimit")

MORE = 2 * 2**30
CHILD = """
import resource, sys
limit = int(sys.argv[1])
if limit:
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
from refimpl import cli
status = cli.main(sys.argv[2:])
with open("/proc/self/status") as file:
    print(next(line.split()[1] for line in file if line.startswith("VmPeak")), file=sys.stderr)
sys.exit(status)
"""


def child(limit: int, *args: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", CHILD, str(limit), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)


@functools.cache
def ordinary(*args: object) -> int:
    """Bytes of address space that a verb takes for what it is made for."""
    done = child(0, *args)
    assert done.returncode == 0, done.stderr
    return int(done.stderr.split()[-1]) * 1024


def hostile(usual: tuple, args: tuple, more: int = MORE) -> tuple[int, list[str]]:
    """Status and stderr of a verb with 2 GB more than `usual` takes; no traceback."""
    done = child(ordinary(*usual) + more, *args)
    *err, _ = done.stderr.strip().splitlines()
    assert "Traceback" not in done.stderr
    assert done.returncode in (0, 2), done.stderr
    assert done.returncode == 0 or len(err) == 1, done.stderr
    assert "out of memory" not in done.stderr
    return done.returncode, err


def striped(width: int, height: int, depth: int, colour: int, channels: int) -> bytes:
    """A PNG of any size in few bytes."""
    row = b"\0" + bytes((width * channels * depth + 7) // 8)
    packer = zlib.compressobj(1)
    rows = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


LARGEST = int(Image.MAX_IMAGE_PIXELS**0.5)
IMAGES: dict[str, Callable[[], bytes]] = {
    "as large as may be, grey": lambda: striped(LARGEST, LARGEST, 1, 0, 1),
    "as large as may be, RGB": lambda: striped(LARGEST, LARGEST, 8, 2, 3),
    "16 bits and alpha": lambda: striped(LARGEST, LARGEST // 9, 16, 6, 4),
    "larger": lambda: striped(LARGEST + 99, LARGEST + 99, 1, 0, 1),
    "a line": lambda: striped(10**7, 1, 8, 0, 1),
    "a column": lambda: striped(1, 10**6, 8, 2, 3),
    "claims a lot": lambda: striped(1, 1, 8, 0, 1).replace(
        struct.pack(">II", 1, 1), struct.pack(">II", 2**31 - 1, 1)),
}  # fmt: skip


@pytest.mark.parametrize("made", IMAGES.values(), ids=IMAGES)
def test_classify(tmp_path, made):
    model = save_model(tmp_path / "m.safetensors")
    (tmp_path / "a.png").write_bytes(made())
    usual = ("classify", SEVEN, "--backend", "numpy")
    hostile(usual, ("classify", tmp_path / "a.png", "--backend", "numpy", "--model", model))


@pytest.mark.parametrize(("width", "height"), [(5000, 1), (1, 20_000), (10**7, 1)])
def test_segment_refuses_what_it_would_have_to_enlarge_without_end(tmp_path, width, height):
    model = save_segmenter(tmp_path / "m.safetensors")
    (tmp_path / "a.png").write_bytes(striped(width, height, 8, 0, 1))
    Image.new("L", (80, 60)).save(tmp_path / "usual.png")
    options = ("--force", "-o", tmp_path / "mask.png", "--model", model, "--backend", "numpy")
    status, err = hostile(
        ("segment", tmp_path / "usual.png", *options), ("segment", tmp_path / "a.png", *options)
    )
    assert status == 2
    assert f"a.png: {width} x {height} pixels would be enlarged to " in err[0]


def test_segment_takes_the_memory_of_some_windows(tmp_path):
    """Logits of the whole image, in float64, would be 690 MB."""
    fields = {"image_size": 112, "patch_size": 16, "dim": 4, "heads": 1, "depth": 1}
    network = refimpl.create_model("segmenter_didb_micro", **fields, num_classes=150)
    model = tmp_path / "m.safetensors"
    refimpl.save(model, network, network.init(np.random.default_rng(0), np.float64))
    picture = np.random.default_rng(0).integers(0, 256, (760, 760), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    Image.fromarray(picture[:200, :300]).save(tmp_path / "usual.png")
    options = ("--force", "-o", tmp_path / "mask.png", "--model", model, "--backend", "numpy")
    usual = ("segment", tmp_path / "usual.png", *options)
    status, err = hostile(usual, ("segment", tmp_path / "a.png", *options), MORE // 4)
    assert status == 0, err
    assert Image.open(tmp_path / "mask.png").size == (760, 760)


def hungry(path: Path, size: int) -> Path:
    """A Swin's file that claims to read large images: no parameter depends on the size."""
    model = refimpl.create_model("swin_micro", num_classes=3)
    params = model.init(np.random.default_rng(0))
    refimpl.save(path, model, params)
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    config = json.loads(header["__metadata__"]["config"]) | {"image_size": [size, size]}
    header["__metadata__"]["config"] = json.dumps(config)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])
    return path


def test_a_models_file_may_not_claim_any_size(tmp_path):
    path = hungry(tmp_path / "m.safetensors", 280_000)
    usual = ("classify", SEVEN, "--backend", "numpy")
    status, err = hostile(usual, ("classify", SEVEN, "--model", path))
    assert status == 2
    assert f"{path}: preprocessing: size is (280000, 280000), expected at most" in err[0]
    with pytest.raises(ModelFileError, match="expected at most 16777216 pixels"):
        refimpl.classifier(path)
    assert files.read(path).model.config.image_size == (280_000, 280_000)
    assert_one_line(run("evaluate", "--data", SMALL, "--model", path), "280000")


def test_what_a_training_crops_of_is_bounded(tmp_path):
    tiny = ("--model", "didb_micro", "--set", "dim=8", "--set", "depth=1", "--epochs", 1)
    train = ("train", "--data", SMALL, *tiny, "--limit", 20, "--backend", "numpy", "--threads", 1)
    usual = (*train, "-o", tmp_path / "usual.safetensors")
    status, err = hostile(usual, (*train, "--crop", 0.02, "-o", tmp_path / "a.safetensors"))
    assert status == 0, err
    status, err = hostile(usual, (*train, "--crop", 0.01, "-o", tmp_path / "c.safetensors"))
    assert status == 0, err  # 20 images of 2800 x 2800
    result = run(*train, "--crop", 0.0001, "-o", tmp_path / "b.safetensors")
    assert_one_line(result, "recipe: crop is 0.0001, expected at least 0.000427")


def test_images_of_a_batch_are_bounded_before_they_are_cut(tmp_path):
    model = refimpl.create_model("didb_micro", dim=8, depth=1)
    images = np.broadcast_to(np.uint8(0), (100, 2800, 2800))
    plain = Preprocessing.plain((28, 28), 1).to_json()
    options = {"preprocessing": plain, "class_names": mnist.CLASS_NAMES}
    options["out"] = tmp_path / "x.safetensors"
    with pytest.raises(ConfigError, match="batch_size is 100: images of 2800 x 2800 take 784,000"):
        training.train(model, training.Recipe(), images, np.zeros(100, int), **options)


def many(folder: Path, count: int) -> Path:
    """MNIST's training images again and again, so many, and ten to test with."""
    images, labels = mnist.load(SMALL, "train")
    folder.mkdir()
    for name, number in (("train", count), ("t10k", 10)):
        chosen = np.arange(number) % len(images)
        write_idx(folder / f"{name}-images-idx3-ubyte.gz", images[chosen])
        write_idx(folder / f"{name}-labels-idx1-ubyte.gz", labels[chosen].astype(np.uint8))
    return folder


def test_a_batch_of_any_size_is_computed_in_parts(tmp_path):
    """In one part the backward pass of these 2500 images would keep 4 GB."""
    data = many(tmp_path / "data", 2500)
    tiny = ("--model", "didb_micro", "--set", "depth=2", "--epochs", 1, "--backend", "numpy")
    train = ("train", "--data", data, *tiny, "--threads", 1, "--shards", 1)
    usual = (*train, "--limit", 4, "-o", tmp_path / "usual.safetensors")
    hungry = (*train, "--batch-size", 10**9, "--validation", 1000, "-o", tmp_path / "a.safetensors")
    status, err = hostile(usual, hungry, MORE // 2)
    assert status == 0, err


def test_the_parts_of_a_batch_are_those_of_the_recipe_unless_one_is_too_large():
    for name in ("didb_micro", "didb_cifar", "react_cifar", "segmenter_didb_micro"):
        assert parts(refimpl.create_model(name).network, 100, 4) == 4
    network = refimpl.create_model("didb_micro").network
    assert parts(network, 3, 4) == 3
    one = summary.value_bytes(network, 4)
    assert parts(network, 10_000, 4) == -(-10_000 * one // 2**30) > 4
    assert parts(network, 10_000, 500) == 500


def test_images_are_evaluated_in_batches_that_memory_holds(monkeypatch):
    """As floats they are four times as large, and more where they were enlarged."""
    images, labels = mnist.load(SMALL, "test")
    ask = refimpl.classifier("didb_micro_mnist", backend="numpy")
    whole, sizes = ask.evaluate(images[:30], labels[:30], 10**6), []
    monkeypatch.setattr(classifiers, "BATCH_BYTES", 7 * 28 * 28 * 4)
    found = ask.evaluate(images[:30], labels[:30], 10**6, sizes.append)
    assert sizes == [7, 7, 7, 7, 2]
    assert (found.top1, found.per_class) == (whole.top1, whole.per_class)


def test_golden_make_of_many_images(tmp_path):
    call = ("golden", "make", "--random", 1, "--model", "didb_micro", "--set", "depth=1")
    usual = (*call, "--taps", "io", "-o", tmp_path / "usual", "--force")
    status, err = hostile(usual, (*call, "--images", 10**9, "-o", tmp_path / "o"))
    assert status == 2
    assert "all values of 1,000,000,000 images take" in err[0]
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("scenes", [2, 60])
def test_scenes_are_written_one_by_one(tmp_path, scenes):
    call = ("scenes", "--data", SMALL, "--test", 1, "--train")
    usual = (*call, 1, "-o", tmp_path / "usual", "--force")
    assert hostile(usual, (*call, scenes, "-o", tmp_path / "o"), 2**20)[0] == 0


def test_scenes_of_a_hostile_data_set(tmp_path):
    usual = ("scenes", "--data", SMALL, "--test", 1, "--train", 1, "-o", tmp_path / "usual")
    folder = tmp_path / "idx"
    folder.mkdir()
    for kind, content in (
        ("images-idx3", idx_bytes(8, (2**31 // 784, 28, 28), b"")),
        ("labels-idx1", idx_bytes(8, (2**31 - 1,), b"")),
    ):
        for name in ("train", "t10k"):
            (folder / f"{name}-{kind}-ubyte").write_bytes(content)
    call = ("scenes", "--data", folder, "--test", 1, "--train", 1, "-o", tmp_path / "o")
    assert hostile((*usual, "--force"), call)[0] == 2
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("call", [("demo",), ("models",), ("compile",)])
def test_verbs_that_read_nothing_of_anybody_take_little(call):
    """What is bundled is all they read, so no input can be large."""
    assert ordinary(*call) < ordinary(*USUAL) + MORE


def test_evaluate_a_hostile_data_set(tmp_path):
    model = save_model(tmp_path / "m.safetensors")
    usual = ("evaluate", "--data", SMALL, "--model", model, "--limit", 9, "--backend", "numpy")
    folder = tmp_path / "idx"
    folder.mkdir()
    (folder / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(8, (2**31 // 784, 28, 28), b""))
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(8, (2**31 - 1,), b""))
    evaluate = ("evaluate", "--model", model, "--backend", "numpy", "--data")
    assert hostile(usual, (*evaluate, folder))[0] == 2
    names = tmp_path / "names.txt"
    names.write_bytes(b"a " * 2**27)
    assert hostile(usual, (*evaluate, SMALL, "--class-names", names))[0] == 2
    tree = tmp_path / "tree"
    for digit in range(10):
        (tree / str(digit)).mkdir(parents=True)
        (tree / str(digit) / "a.png").write_bytes(SEVEN.read_bytes())
    (tree / "1" / "a.png").write_bytes(striped(LARGEST, LARGEST, 1, 0, 1))
    assert hostile(usual, (*evaluate, tree))[0] == 0


def sparse(path: Path, start: bytes = b"") -> Path:
    """A file of 12 GB in no space: what it begins with, then zeros."""
    with open(path, "wb") as file:
        file.write(start)
        file.truncate(12 * 2**30 + len(start))
    return path


def claiming(path: Path) -> Path:
    """A safetensors file with one array of 12 GB, which is there."""
    entry = {"dtype": "F32", "shape": [3 * 2**16, 2**14], "data_offsets": [0, 12 * 2**30]}
    text = json.dumps({"blocks.0.attn.qkv.weight": entry}).encode()
    return sparse(path, struct.pack("<Q", len(text)) + text)


BUNDLE = "small_tie_free"
OF_A_FILE: dict[str, Callable[[Path, Path], tuple]] = {
    "summary": lambda file, out: ("summary", file),
    "show": lambda file, out: ("show", file),
    "compile": lambda file, out: ("compile", "--model", file),
    "classify": lambda file, out: ("classify", SEVEN, "--model", file),
    "segment": lambda file, out: ("segment", SEVEN, "--model", file, "-o", out / "o.png"),
    "evaluate": lambda file, out: ("evaluate", "--data", SMALL, "--limit", 2, "--model", file),
    "pack": lambda file, out: ("pack", file, "-o", out / "o.safetensors"),
    "import": lambda file, out: ("import", file, "-o", out / "o.safetensors"),
    "report": lambda file, out: ("report", SEVEN, "--model", file, "-o", out / "o.html"),
    "golden make": lambda file, out: (
        *("golden", "make", "--random", 1, "--model", file, "-o", out / "o"),
    ),
    "golden compare": lambda file, out: ("golden", "compare", BUNDLE, file),
    "golden diff": lambda file, out: ("golden", "diff", BUNDLE, file, "logits"),
}
USUAL = ("classify", SEVEN, "--backend", "numpy")


@pytest.mark.parametrize("verb", OF_A_FILE)
def test_no_verb_reads_what_a_file_claims_and_its_network_lacks(tmp_path, verb):
    file = claiming(tmp_path / "m.safetensors")
    done = child(ordinary(*USUAL) + MORE, *OF_A_FILE[verb](file, tmp_path))
    one_line(done, str(file))
    assert list(tmp_path.iterdir()) == [file]


BOUNDED = {
    "classify": "preprocessing: size is (280000, 280000)",
    "report": "preprocessing: size is (280000, 280000)",
    "golden make": "images of 280000 x 280000 take",
}


@pytest.mark.parametrize("verb", BOUNDED)
def test_what_a_network_would_read_is_bounded(tmp_path, verb):
    file = hungry(tmp_path / "m.safetensors", 280_000)
    done = child(ordinary(*USUAL) + MORE, *OF_A_FILE[verb](file, tmp_path))
    one_line(done, f"{file}: {BOUNDED[verb]}")


@pytest.mark.parametrize("verb", ["report", "golden make"])
def test_large_images_of_a_report_and_of_golden_vectors(tmp_path, verb):
    (tmp_path / "a.png").write_bytes(IMAGES["as large as may be, RGB"]())
    model, out = save_model(tmp_path / "m.safetensors"), tmp_path / "o"
    calls = {
        "report": lambda image: ("report", image, "--model", model, "--force", "-o", out),
        "golden make": lambda image: (
            *("golden", "make", "--image", image, "--model", model, "--taps", "io", "-o"),
            tmp_path / image.stem,
        ),
    }
    assert hostile(calls[verb](SEVEN), calls[verb](tmp_path / "a.png"))[0] == 0


OF_A_SIZE: dict[str, Callable[[Path], tuple]] = {
    "classify": lambda folder: ("classify", SEVEN, "--model", folder / "m.safetensors"),
    "evaluate": lambda folder: (
        *("evaluate", "--data", SMALL, "--limit", 2, "--model", folder / "m.safetensors"),
    ),
    "segment": lambda folder: (
        *("segment", SEVEN, "--model", folder / "s.safetensors", "-o", folder / "o.png"),
    ),
}


@pytest.mark.parametrize("verb", OF_A_SIZE)
def test_an_image_that_numpy_cannot_hold_is_refused(tmp_path, verb):
    """Scores of 65,537 tokens among themselves would be 32 GB."""
    save_model(tmp_path / "m.safetensors")
    save_segmenter(tmp_path / "s.safetensors")
    options = ("--image-size", 1024, "--backend", "numpy")
    done = child(ordinary(*USUAL) + MORE, *OF_A_SIZE[verb](tmp_path), *options)
    one_line(done, "images of 1024 x 1024 take 137.5 GB in NumPy, expected at most 2.1")


def test_a_batch_is_computed_in_parts_that_memory_holds(tmp_path):
    """Scores of all 100 images at once would be 4 GB, and are there several times."""
    model = save_model(tmp_path / "m.safetensors")
    usual = ("evaluate", "--data", SMALL, "--limit", 9, "--model", model, "--backend", "numpy")
    args = ("evaluate", "--data", SMALL, "--limit", 100, "--model", model, "--backend", "numpy")
    status, err = hostile(usual, (*args, "--image-size", 112, "--batch-size", 100))
    assert status == 0, err


def test_show_counts_and_computes_nothing(tmp_path):
    model = save_model(tmp_path / "m.safetensors")
    assert hostile(USUAL, ("show", model, "--image-size", 100_000))[0] == 0


TEXTS: dict[str, Callable[[Path, Path], tuple]] = {
    "recipe": lambda text, out: (
        *("train", "--data", SMALL, "--model", "didb_micro", "--recipe", text),
        *("-o", out / "o.safetensors"),
    ),
    "ablation": lambda text, out: (
        *("ablate", "--recipe", text, "--data", SMALL, "-o", out / "o"),
    ),
    "map": lambda text, out: ("golden", "compare", BUNDLE, out, "--map", text),
    "roundoffs": lambda text, out: ("golden", "compare", BUNDLE, out, "--unit-roundoff", text),
    "configuration": lambda text, out: (
        *("import", claiming(out / "m.safetensors"), "--config", text, "-o", out / "o.safetensors"),
    ),
    "scheduler": lambda text, out: ("evaluate", "--data", SMALL, "--scheduler", text),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_a_text_of_any_size_is_not_read(tmp_path, kind):
    if kind == "scheduler":
        pytest.importorskip("distributed", reason="Dask, the extra `cluster`, is missing")
    text = sparse(tmp_path / "text.json")
    done = child(ordinary(*USUAL) + MORE, *TEXTS[kind](text, tmp_path))
    one_line(done, str(text))
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("arguments", [
    ("model", "--model", "didb_micro", "--batch", 10**8),
    ("train", "--model", "didb_micro", "--batch", 10**8),
    ("kernels", "--shape", "1000000x1000000x1000000"),
])  # fmt: skip
def test_a_bench_draws_no_more_than_that(arguments):
    done = child(0, "bench", *arguments)
    assert int(done.stderr.split()[-1]) * 1024 < ordinary(*USUAL) + MORE
    assert done.returncode == 2
    assert "bytes; expected at most 536,870,912" in done.stderr.splitlines()[-2]


def one_line(done: subprocess.CompletedProcess, *words: str) -> None:
    """Bad input, said in one line with these words; memory was no matter."""
    assert done.returncode in (2, 3), done
    line, _ = done.stderr.strip().splitlines()
    assert "memory" not in line, line
    for word in words:
        assert word in line


# --- bounds ---------------------------------------------------------------------------------------


def test_a_preprocessing_makes_no_more_pixels_than_that():
    Preprocessing.plain((2**12, 2**12), 1)
    for size in ((2**12, 2**12 + 1), (MAX_PIXELS + 1, 1), (10**9, 10**9)):
        with pytest.raises(ConfigError, match="expected at most 16777216 pixels"):
            Preprocessing.plain(size, 1)


def test_an_image_is_enlarged_to_so_many_windows_at_most():
    ask = small()  # windows of 8 x 12
    assert ask(picture(1, 12 * ENLARGED // 8)).labels.shape == (1, 96)
    with pytest.raises(DataError, match=r"image: 97 x 1 pixels would be enlarged to 776 x 8"):
        ask(picture(1, 97))
    with pytest.raises(DataError, match=r"mine\.png: 1 x 44 pixels"):
        ask(picture(44, 1), "mine.png")


@pytest.mark.parametrize("room", [4, 3000, 20_000])
@pytest.mark.parametrize("size", [(30, 50), (5, 6), (3, 40), (64, 7), (9, 13), (8, 12)])
def test_strips_and_bands_of_any_size_give_the_same(monkeypatch, room, size):
    ask, pixels = small(), picture(*size)
    whole = ask.logits(pixels)
    module = sys.modules[Segmenter.__module__]
    monkeypatch.setattr(module, "BAND_BYTES", room)
    monkeypatch.setattr(module, "WINDOW_BYTES", room)
    np.testing.assert_allclose(ask.logits(pixels), whole, rtol=1e-13, atol=1e-13)
    np.testing.assert_array_equal(ask(pixels).labels, whole.argmax(axis=0))


def test_pixels_are_limited_even_where_pillow_only_warns():
    with pytest.raises(DataError, match="refused, too many pixels: 90250000, expected at most 894"):
        images.decode(striped(9500, 9500, 1, 0, 1), "large")


def test_no_more_idx_images_than_memory_holds(monkeypatch):
    monkeypatch.setattr(datasets, "MAX_BYTES", 2**20)
    with pytest.raises(DataError, match="a limit takes fewer"):
        datasets.load(SMALL, "train", Preprocessing.plain((560, 560), 1))


def test_an_annotation_of_many_pixels(tmp_path):
    content = encoded(Image.new("P", (4000, 3000), 1))
    numbers = images.decode_indices(content, "large")
    assert (numbers.dtype, numbers.shape) == (np.uint8, (3000, 4000))
