"""No output of the command line destroys an input, a neighbour or another output."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import refimpl
from refimpl.models import files
from tests.command_line import (
    SEVEN,
    SMALL,
    assert_one_line,
    run,
    save_model,
    save_segmenter,
    write_mnist,
)

MINE = b"mine"
TRAIN = ("--model", "didb_micro", "--set", "depth=1", "--set", "dim=8", "--epochs", 1)


@pytest.fixture(scope="module")
def room(tmp_path_factory) -> Path:
    """A model, a segmenter, an image, and data to train on; nothing of it may ever change."""
    folder = tmp_path_factory.mktemp("room")
    save_model(folder / "model.safetensors")
    save_segmenter(folder / "segmenter.safetensors")
    shutil.copy(SEVEN, folder / "seven.png")
    write_mnist(folder / "data", {"train": 6, "test": 3})
    (folder / "recipe.json").write_text('{"epochs": 1}')
    return folder


@pytest.fixture(autouse=True)
def unharmed(room) -> Callable[[], None]:
    def contents() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in room.rglob("*") if path.is_file()}

    before = contents()
    yield
    assert contents() == before


def train(room: Path, out: Path, *options: object) -> tuple:
    return ("train", "--data", room / "data", "-o", out, *TRAIN, *options)


def verbs(room: Path, out: Path) -> dict[str, tuple]:
    """Calls that write one file, `out` with a suffix each."""
    image, segmenter = room / "seven.png", room / "segmenter.safetensors"
    return {
        "report": ("report", image, "--model", room / "model.safetensors", "-o", out / "o.html"),
        "pack": ("pack", room / "model.safetensors", "-o", out / "o.safetensors"),
        "segment": ("segment", image, "--model", segmenter, "-o", out / "o.png"),
        "overlay": (
            *("segment", image, "--model", segmenter, "-o", out / "mask.png"),
            *("--overlay", out / "o.png"),
        ),
        "train": train(room, out / "o.safetensors"),
        "card": train(room, out / "o.safetensors"),
        "csv": train(room, out / "o.safetensors", "--curves", "csv"),
        "png": train(room, out / "o.safetensors", "--curves", "png"),
        "packed card": ("pack", room / "model.safetensors", "-o", out / "o.safetensors"),
    }


SUFFIXES = {
    "report": ".html", "pack": ".safetensors", "segment": ".png", "overlay": ".png",
    "train": ".safetensors", "card": ".json", "csv": ".csv", "png": ".png",
    "packed card": ".json",
}


@pytest.mark.parametrize("verb", SUFFIXES)
def test_what_exists_is_refused_and_overwritten_with_force(room, tmp_path, verb) -> None:
    path = tmp_path / f"o{SUFFIXES[verb]}"
    path.write_bytes(MINE)
    call = verbs(room, tmp_path)[verb]
    exists = "exists; expected the name of a new file; --force overwrites it"
    assert_one_line(run(*call), str(path), exists)
    assert path.read_bytes() == MINE
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert run(*call, "--force").status == 0
    assert (path.read_bytes() == MINE) == (verb == "packed card")  # pack writes none


@pytest.mark.parametrize("verb", ["report", "pack", "segment", "train"])
def test_a_link_is_followed(room, tmp_path, verb) -> None:
    link = tmp_path / f"o{SUFFIXES[verb]}"
    link.symlink_to("elsewhere")
    assert run(*verbs(room, tmp_path)[verb]).status == 0
    assert link.is_symlink()
    assert (tmp_path / "elsewhere").stat().st_size > 100


@pytest.mark.parametrize("verb", ["report", "pack", "segment", "train"])
def test_a_missing_folder_is_told_before_the_work(room, tmp_path, verb) -> None:
    assert_one_line(run(*verbs(room, tmp_path / "none")[verb]), "none", "no such folder")


def test_no_input_is_overwritten_even_with_force(room, tmp_path) -> None:
    model, segmenter = room / "model.safetensors", room / "segmenter.safetensors"
    image = room / "seven.png"
    inside = next((room / "data").iterdir())
    (tmp_path / "link.png").symlink_to(image)
    (tmp_path / "model").symlink_to(model)
    for call, path in (
        (("report", image, "--model", model), image),
        (("report", image, "--model", model), model),
        (("report", image, "--model", model), tmp_path / "model"),
        (("pack", model), model),
        (("segment", image, "--model", segmenter), image),
        (("segment", image, "--model", segmenter), tmp_path / "link.png"),
        (("segment", image, "--model", segmenter, "--overlay", image), tmp_path / "o.png"),
        (("train", "--data", room / "data", *TRAIN), inside),
        (("train", "--data", room / "data", *TRAIN), room / "data"),
        (
            ("train", "--data", room / "data", "--recipe", room / "recipe.json", *TRAIN),
            room / "recipe.safetensors",  # whose card would be the recipe
        ),
        (
            ("evaluate", "--data", room / "data", "--model", segmenter, "--confusion", inside),
            None,
        ),
    ):
        output = () if path is None else ("-o", path)
        result = run(*call, *output, "--force")
        assert_one_line(result)
        reasons = (" itself, expected", "is in the data", "is a folder")
        assert any(reason in result.err for reason in reasons)


def test_a_shipped_model_is_an_input_too(room, tmp_path) -> None:
    from refimpl.models import files

    path = files.find("didb_micro_mnist")
    before = path.read_bytes()
    for call in (("pack", "didb_micro_mnist"), ("report", room / "seven.png")):
        assert_one_line(run(*call, "-o", path, "--force"), "is the model itself")
    assert path.read_bytes() == before


@pytest.mark.parametrize("second", ["o.png", "./o.png", "link.png"])
def test_two_outputs_are_two_files(room, tmp_path, second) -> None:
    (tmp_path / "link.png").symlink_to("o.png")
    first, second = tmp_path / "o.png", f"{tmp_path}/{second}"
    call = ("segment", room / "seven.png", "--model", room / "segmenter.safetensors")
    result = run(*call, "-o", first, "--overlay", second, "--force")
    assert_one_line(result, "named for two outputs")
    assert not first.exists()


def test_two_outputs_of_training_are_two_files(room, tmp_path) -> None:
    """The curves of a model are named like it; so a model cannot be called x.csv or x.png."""
    assert_one_line(run(*train(room, tmp_path / "o.json")), "two outputs")
    assert list(tmp_path.iterdir()) == []


def test_several_outputs_may_go_to_one_device(room) -> None:
    call = ("segment", room / "seven.png", "--model", room / "segmenter.safetensors")
    assert run(*call, "-o", "/dev/null", "--overlay", "/dev/null").status == 0


def test_a_resumed_run_spares_curves_that_are_not_its_own(room, tmp_path) -> None:
    """The run had none, and is resumed with some: what lies there is the user's."""
    from refimpl.training import loop

    out, curves = tmp_path / "o.safetensors", tmp_path / "o.csv"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.files, "save", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(*train(room, out)).status == 130
    curves.write_bytes(MINE)
    resumed = train(room, out, "--resume", "--curves", "csv")
    assert_one_line(run(*resumed), "o.csv: exists")
    assert curves.read_bytes() == MINE
    assert run(*resumed, "--force").status == 0
    assert curves.read_text().startswith("stage,epoch")


def test_a_packed_file_never_takes_the_card_of_what_was_there(room, tmp_path) -> None:
    """`--record` used to write the figures of the packed file into the old model's card."""
    path, card = save_model(tmp_path / "mine.safetensors"), tmp_path / "mine.json"
    latent = hashlib.sha256(path.read_bytes()).hexdigest()
    assert json.loads(card.read_bytes())["sha256"] == latent
    call = ("pack", room / "model.safetensors", "-o", path)
    assert_one_line(run(*call), "mine.safetensors: exists")
    done = run(*call, "--force")
    assert done.status == 0
    assert done.err.endswith(f"{card}: removed, it was the card of other weights\n")
    assert not card.exists()
    evaluate = ("evaluate", "--data", room / "data", "--model", path, "--record")
    assert_one_line(run(*evaluate), "mine.json", "cannot read the card of the model")
    # that of the same weights stays
    files.save_packed(path, *refimpl.load(room / "model.safetensors"), card={"data": "none"})
    before = card.read_bytes()
    assert run(*call, "--force").status == 0
    assert card.read_bytes() == before


def test_a_table_that_lies_in_the_folder_of_an_ablation_is_spared(room, tmp_path) -> None:
    recipe, out = tmp_path / "ablation.json", tmp_path / "out"
    row = {"name": "one", "model": "didb_micro", "fields": {"depth": 1, "dim": 8}}
    ablation = {"recipe": {"epochs": 1}, "rows": [row], "images": 4, "seeds": [0]}
    recipe.write_text(json.dumps(ablation))
    out.mkdir()
    (out / "table.md").write_bytes(MINE)
    call = ("ablate", "--recipe", recipe, "--data", room / "data", "-o", out)
    assert_one_line(run(*call), "table.md: exists")
    assert (out / "table.md").read_bytes() == MINE


def test_the_teacher_of_a_recipe_is_an_input_too(room, tmp_path) -> None:
    teacher = save_model(tmp_path / "teacher.safetensors")
    before = teacher.read_bytes()
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps({"teacher": str(teacher), "distillation": 0.5}))
    call = train(room, teacher, "--recipe", recipe, "--force")
    assert_one_line(run(*call), "teacher.safetensors: is the teacher itself")
    assert teacher.read_bytes() == before


@pytest.mark.parametrize("append", [False, True])
def test_a_page_goes_through_a_pipe_alone(room, tmp_path, append) -> None:
    """What is printed goes to stderr; and `>>` keeps what is in the file."""
    call = verbs(room, tmp_path)["report"][:-1]
    command = [sys.executable, "-m", "refimpl", *map(str, call), "/dev/stdout"]
    page = tmp_path / "page.html"
    page.write_bytes(b"before\n" if append else b"")
    with page.open("ab" if append else "wb") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0
    assert "bytes" in done.stderr
    written = page.read_bytes()
    assert written.startswith(b"before\n<!DOCTYPE html>" if append else b"<!DOCTYPE html>")
    assert written.endswith(b"</html>\n")
    piped = subprocess.run(command, capture_output=True)
    assert piped.stdout.startswith(b"<!DOCTYPE html>")
    assert piped.stdout.endswith(b"</html>\n")


@pytest.mark.parametrize(
    ("call", "suffix"),
    [
        (("report", SEVEN, "-o"), ".txt"),
        (("live", "-o"), ".png"),
        (("export", "didb_micro_mnist", "--onnx"), ".pb"),
        (("show", "didb_micro", "--diagram"), ".png"),
        (("evaluate", "--data", SMALL, "--confusion"), ".txt"),
        (("ablate", "--recipe", "none.toml", "-o", "none", "--plot"), ".jpg"),
    ],
)
def test_no_file_is_called_like_another_kind(tmp_path, call, suffix) -> None:
    path = tmp_path / f"o{suffix}"
    assert_one_line(run(*call, path), str(path), f"suffix {suffix!r}, expected '.")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "call",
    [
        ("show", "didb_micro"),
        ("evaluate", "--data", SMALL),
        ("golden", "compare", "small_tie_free", "small_tie_free"),
    ],
)
def test_force_alone_is_a_slip(call) -> None:
    assert_one_line(run(*call, "--force"), "--force: nothing is written; expected --")


def test_folders_that_exist_name_the_option_too(tmp_path) -> None:
    folder, hint = tmp_path / "o", "; --force replaces one of an earlier run"
    for call in (
        ("scenes", "--data", SMALL, "--train", 1, "--test", 1, "-o", folder),
        ("golden", "make", "--model", "didb_micro", "--random", 1, "--taps", "io", "-o", folder),
        ("golden", "vectors", "pool", "-o", folder),
        ("export", "didb_micro_mnist", "--c", folder),
    ):
        assert run(*call).status == 0
        assert_one_line(run(*call), f"{folder}: exists; expected", hint)
        assert run(*call, "--force").status == 0
        (folder / "mine").write_bytes(MINE)
        assert_one_line(run(*call, "--force"), str(folder), "expected a")
        assert (folder / "mine").read_bytes() == MINE
        shutil.rmtree(folder)
    folder.mkdir()
    (folder / "00000.png").write_bytes(MINE)  # no folder of scenes
    call = ("scenes", "--data", SMALL, "-o", folder, "--force")
    assert_one_line(run(*call), "holds 00000.png")
    (folder / "00000.png").rename(folder / "classes.txt")
    assert_one_line(run(*call), "no classes.txt of scenes in it")
    assert (folder / "classes.txt").read_bytes() == MINE


def test_a_file_in_the_place_of_a_folder_is_not_said_to_go(tmp_path) -> None:
    (tmp_path / "o").write_bytes(MINE)
    for target in ("--c", "--hex"):
        result = run("export", "didb_micro_mnist", target, tmp_path / "o")
        assert_one_line(result, "o: exists; expected the name of a new folder or an empty one")
        assert "--force" not in result.err
    assert (tmp_path / "o").read_bytes() == MINE


def test_a_link_among_scenes_is_not_theirs(tmp_path) -> None:
    folder = tmp_path / "scenes"
    call = ("scenes", "--data", SMALL, "-o", folder, "--train", "1", "--test", "1", "--force")
    assert run(*call).status == 0
    (folder / "images" / "mine").symlink_to(tmp_path)  # a folder, as those of scenes are
    assert_one_line(run(*call), "holds images/mine")
    assert (folder / "images" / "mine").is_symlink()


@pytest.mark.parametrize("verb", ["import", "pack"])
@pytest.mark.parametrize("out", [".", "/"])
def test_a_folder_is_no_name_of_a_model(verb, out, tmp_path) -> None:
    given = tmp_path / "given.safetensors"
    given.write_bytes(b"")
    assert_one_line(run(verb, given, "-o", out), f"{out}: is a folder")
