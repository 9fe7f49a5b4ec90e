"""The command as a process: signals, closed streams, an odd environment, words it does not know."""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import refimpl
from refimpl import cli
from refimpl.conventions import ConfigError
from refimpl.models import architectures, cards, files
from refimpl.training import loop
from tests import training_runs
from tests.command_line import (
    PATIENCE,
    SEVEN,
    SMALL,
    assert_one_line,
    process,
    run,
    save_model,
    wanting_signals,
)
from tests.test_data import encoded

pytestmark = pytest.mark.skipif(os.name == "nt", reason="sends signals, closes streams")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "tiny.safetensors")


def child(code: str, *arguments: object, **options) -> subprocess.CompletedProcess:
    """The command in a process that runs `code` first."""
    code += "\nimport sys; from refimpl.__main__ import command; sys.exit(command())"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        **{"capture_output": True, "text": True, "timeout": PATIENCE, **options},
        preexec_fn=wanting_signals,
    )


# --- signals --------------------------------------------------------------------------------------

AT_IMPORT = """
import builtins, os, signal
imported = builtins.__import__
def importing(name, *more):
    if name == "numpy" or name.startswith("numpy."):
        builtins.__import__ = imported
        os.kill(os.getpid(), signal.{})
    return imported(name, *more)
builtins.__import__ = importing
"""
AT_WRITE = """
import os, signal
from refimpl.data import scenes
draw, drawn = scenes.draw, []
def drawing(*arguments):
    drawn.append(None)
    if len(drawn) == 3:
        os.kill(os.getpid(), signal.{})
    return draw(*arguments)
scenes.draw = drawing
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_while_python_imports_is_one_line(name) -> None:
    done = child(AT_IMPORT.format(name), "models")
    assert done.returncode == 128 + getattr(signal, name)
    assert (done.stdout, done.stderr) == ("", "refimpl: interrupted\n")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_leaves_no_half_of_a_folder(tmp_path, name) -> None:
    arguments = ("scenes", "--data", SMALL, "-o", tmp_path / "out", "--train", 9, "--test", 9)
    done = child(AT_WRITE.format(name), *arguments)
    assert done.returncode == 128 + getattr(signal, name)
    assert (done.stdout, done.stderr) == ("", "refimpl: interrupted\n")
    assert list(tmp_path.iterdir()) == []


AT_CLUSTER = """
import os, signal
from refimpl.cluster import connection
LocalCluster = connection.LocalCluster
def started(**options):
    os.kill(os.getpid(), signal.{0})
    cluster = LocalCluster(**options)
    os.kill(os.getpid(), signal.{0})
    return cluster
connection.LocalCluster = started
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_while_workers_start_is_one_line(name) -> None:
    pytest.importorskip("distributed", reason="Dask, the extra `cluster`, is missing")
    done = child(AT_CLUSTER.format(name), "evaluate", "--data", SMALL, "--scheduler", "local:1")
    assert done.returncode == 128 + getattr(signal, name)
    assert (done.stdout, done.stderr) == ("", "refimpl: interrupted\n")


def test_workers_that_do_not_start_are_one_line() -> None:
    pytest.importorskip("distributed", reason="Dask, the extra `cluster`, is missing")
    code = (
        "from refimpl.cluster import connection\n"
        "def failing(**options): raise RuntimeError('Nanny failed to start.')\n"
        "connection.LocalCluster = failing"
    )
    done = child(code, "evaluate", "--data", SMALL, "--scheduler", "local:1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "refimpl: local:1: the workers do not start: Nanny failed to start.\n"


def test_a_signal_that_is_ignored_stays_ignored(tmp_path) -> None:
    """`nohup refimpl … &` goes on when the terminal is closed."""
    code = f"import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n{AT_WRITE}"
    arguments = ("scenes", "--data", SMALL, "-o", tmp_path / "out", "--train", 5, "--test", 5)
    assert child(code.format("SIGHUP"), *arguments).returncode == 0
    assert len(list((tmp_path / "out" / "images" / "test").iterdir())) == 5


# --- closed streams -------------------------------------------------------------------------------


def closing(*numbers: int) -> str:
    """Code after which the process is as if its streams had been closed before it began."""
    names = ("stdin", "stdout", "stderr")
    lines = [f"os.close({number}); sys.{names[number]} = None" for number in numbers]
    return "\n".join(["import os, sys", *lines])


@pytest.mark.parametrize("numbers", [(0,), (1,), (2,), (1, 2), (0, 1, 2)])
def test_closed_streams_are_no_fault(model, tmp_path, numbers) -> None:
    out = tmp_path / "page.html"
    done = child(closing(*numbers), "report", SEVEN, "--model", model, "-o", out)
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout.startswith(str(out)) == (1 not in numbers)
    assert out.read_bytes().endswith(b"</html>\n")  # nothing printed got into it
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


@pytest.mark.parametrize(
    "arguments",
    [("models",), ("--help",), ("train", "--help"), ("version",), ("show", "didb_micro", "--json")],
)
@pytest.mark.parametrize("how", [">&-", ">/dev/full"])
def test_an_answer_that_is_lost_is_an_error(arguments, how) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no device that is always full")
    command = " ".join([sys.executable, "-m", "refimpl", *arguments, how])
    done = subprocess.run(command, shell=True, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert re.fullmatch("refimpl: standard output: .+\\n", done.stderr)


def test_a_full_disk_under_the_log_changes_nothing(model, tmp_path) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no device that is always full")
    tiny = ("--model", "didb_micro", "--set", "dim=8", "--set", "depth=1", "--epochs", 1)
    train = ("train", "--data", SMALL, "--limit", 6, *tiny, "-o", tmp_path / "o.safetensors")
    statuses = {("classify", "none.png", "--model", model): 2, ("x",): 2, train: 0}
    for arguments, status in statuses.items():
        with open("/dev/full", "w") as full:
            command = [sys.executable, "-m", "refimpl", *map(str, arguments)]
            done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=full)
        assert done.returncode == status
    assert (tmp_path / "o.json").exists()


@pytest.mark.parametrize("verb", ["report", "segment", "golden make"])
def test_an_image_may_come_through_a_pipe(model, tmp_path, verb) -> None:
    make = ("golden", "make", "--image", "-", "--model", model, "--taps", "io")
    calls = {
        "report": ("report", "-", "--model", model, "-o", tmp_path / "o.html"),
        "segment": ("segment", "-", "-o", tmp_path / "o.png"),
        "golden make": (*make, "-o", tmp_path / "o"),
    }
    command = [sys.executable, "-m", "refimpl", *map(str, calls[verb])]
    done = subprocess.run(command, input=SEVEN.read_bytes(), capture_output=True)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.iterdir())) == 1


def test_errors_without_a_stream_have_their_status(model) -> None:
    done = child(closing(2), "classify", "none.png", "--model", model)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")
    done = child(closing(0), "classify", "-", "--model", model)
    assert done.returncode == 2
    assert done.stderr == "refimpl: standard input: the file is empty, expected an image\n"


# --- the environment ------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", ["0", "-3"])
def test_a_variable_that_numba_does_not_bear_is_named(model, threads) -> None:
    environment = {**os.environ, "NUMBA_NUM_THREADS": threads}
    done = process("classify", SEVEN, "--model", model, "--backend", "engine", env=environment)
    assert done.returncode == 2
    assert re.fullmatch(rf"refimpl: .*NUMBA_NUM_THREADS={threads}.*\n", done.stderr)


@pytest.mark.parametrize(
    "command",
    [["compile"], *(["bench", verb] for verb in ("kernels", "model", "layers", "scaling"))],
)
def test_it_is_named_by_every_verb_that_starts_numba(command) -> None:
    environment = {**os.environ, "NUMBA_NUM_THREADS": "0"}
    done = process(*command, env=environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"refimpl: Numba does not start: .*NUMBA_NUM_THREADS=0.*\n", done.stderr)


def test_main_takes_no_short_cuts_in_the_process_of_others(model) -> None:
    """None in sys.modules would be met by whoever imports SciPy meanwhile."""
    code = (
        "import gc, sys; before = gc.get_threshold(); from refimpl import cli\n"
        "class Modules(dict):\n"
        "    def __setitem__(self, name, module):\n"
        "        assert module is not None, name\n"
        "        super().__setitem__(name, module)\n"
        "from refimpl.cli import options\n"
        "options.sys = type('', (), {'modules': Modules(sys.modules)})\n"
        f"status = cli.main(['classify', {str(SEVEN)!r}, '--model', {str(model)!r}])\n"
        "assert gc.get_threshold() == before\n"
        "sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


# --- what libraries print from C -----------------------------------------------------------------


def broken_tiff() -> bytes:
    """Its pixels, which libtiff is to decode, are noise."""
    content = bytearray(encoded(Image.new("RGB", (60, 40), "red"), "TIFF", compression="tiff_lzw"))
    content[8:40] = bytes(range(100, 132))
    return bytes(content)


def test_a_broken_tiff_is_one_line_of_ours(model, tmp_path) -> None:
    (tmp_path / "a.tif").write_bytes(broken_tiff())
    done = process("classify", tmp_path / "a.tif", "--model", model)
    assert done.returncode == 2
    assert re.fullmatch(r"refimpl: \S+a\.tif: the image is broken or truncated .+\n", done.stderr)


@pytest.mark.parametrize("workers", [(), ("--workers", 2)])
def test_broken_tiffs_of_a_folder_are_our_lines(model, tmp_path, workers) -> None:
    for digit in range(10):
        (tmp_path / "data" / str(digit)).mkdir(parents=True)
        shutil.copy(SEVEN, tmp_path / "data" / str(digit))
        (tmp_path / "data" / str(digit) / "a.tif").write_bytes(broken_tiff())
    options = ("--data", tmp_path / "data", "--model", model, "--skip-broken", *workers)
    done = process("evaluate", *options)
    assert done.returncode == 0
    assert done.stderr.count("a.tif") >= 1
    assert all(line.startswith("refimpl: ") for line in done.stderr.splitlines()), done.stderr


# --- sizes that nobody means ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("depth=1000000000", "depth is 1000000000; expected at most 1,000 blocks"),
        ("dim=1000000000000", "dim is 1000000000000; expected at most 1,000,000"),
        ("dim=60000", "GB; expected a model that fits into"),
        ("mlp_ratio=1000000", "GB in NumPy, expected at most 2.1"),
        (f"depth={'[' * 100_000}", "--set depth: config: depth is '[["),
    ],
)
def test_networks_that_nobody_can_train_are_told_at_once(tmp_path, field, words) -> None:
    arguments = ("--data", SMALL, "--limit", 5, "--model", "didb_micro", "--set", field)
    result = run("train", *arguments, "-o", tmp_path / "x.safetensors")
    assert_one_line(result, words)
    assert list(tmp_path.iterdir()) == []


# --- names that are no text -----------------------------------------------------------------------


def test_data_whose_name_is_no_text(tmp_path) -> None:
    """The card could not be written, after the last epoch, and never again by --resume."""
    data, out = tmp_path / os.fsdecode(b"donn\xe9es"), tmp_path / "x.safetensors"
    names = ["coffee", "tea"]
    try:
        for split, name in itertools.product(("train", "test"), names):
            (data / split / name).mkdir(parents=True)
            shutil.copy(SEVEN, data / split / name)
    except OSError:
        pytest.skip("this file system wants names to be text")
    model = ("--model", "didb_micro", *("--set", "num_classes=2", "--set", "depth=1"))
    assert run("train", "--data", data, *model, "--epochs", 1, "-o", out).status == 0
    assert refimpl.load(out)[0].class_names == tuple(names)
    assert run("evaluate", "--data", data, "--model", out, "--record").status == 0
    card = cards.read(out)
    assert card["class_names"] == names
    assert card["data"] == data.name
    assert card["evaluation"]["data"].startswith(data.name)


def test_what_a_card_cannot_hold_is_told_before_the_first_epoch(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(loop, "_epoch", lambda *arguments: pytest.fail("it trained"))
    with pytest.raises(ConfigError, match="card: .*PosixPath"):
        training_runs.train(tmp_path, card={"data": tmp_path})
    assert list(tmp_path.iterdir()) == []


# --- words that are not known ---------------------------------------------------------------------


@pytest.mark.parametrize("words", [(), ("golden",), ("bench",)])
def test_without_a_verb_all_are_shown(words) -> None:
    status, out, err = run(*words)
    assert (status, out) == (2, "")
    assert err.startswith(run(*words, "--help").out)
    assert err.endswith("error: the following arguments are required: VERB\n")


def test_help_and_version_are_understood() -> None:
    assert run("help") == run("--help")
    assert run("help", "classify") == run("classify", "--help")
    assert run("help", "golden", "compare") == run("golden", "compare", "--help")
    assert run("version") == run("--version") == (0, f"refimpl {refimpl.__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("clasify", "x.png"), "classify"),
        (("golden", "compar", "a", "b"), "compare"),
        (("classify", "x.png", "--backend", "enigne"), "engine"),
        (("classify", "x.png", "--model", "didb_cifar"), "didb_cifar10"),
        (("classify", "x.png", "--model", "didb_micro_minst"), "didb_micro_mnist"),
        (("summary", "didb-tiny"), "didb_tiny"),
        (("summary", "deit_cifar-10"), "deit_cifar10"),
        (("train", "--data", "x", "--model", "didb-tiny", "-o", "y.safetensors"), "didb_tiny"),
    ],
)
def test_the_nearest_name_is_told(words, meant) -> None:
    status, out, err = run(*words)
    assert (status, out) == (2, "")
    assert err.endswith(f"did you mean {meant!r}?\n")


@pytest.mark.parametrize("verb", ["summary", "classify", "evaluate --data"])
def test_addresses_are_told_from_files(verb) -> None:
    for address in ("https://example.org/x.png", "s3://bucket/x.png"):
        assert_one_line(run(*verb.split(), address), "download it")


def test_models_are_listed_by_pattern() -> None:
    assert refimpl.list_models() == list(architectures.NAMES)
    assert refimpl.list_models("didb_swin*") == ["didb_swin_micro", "didb_swin_tiny"]
    assert refimpl.list_models("none") == []
    assert refimpl.list_models("d*cifar10", trained=True) == ["deit_cifar10", "didb_cifar10"]
    assert refimpl.list_models(trained=True) == files.shipped()


def test_the_package_imports_nothing_that_takes_time() -> None:
    code = "import sys, refimpl; assert 'numpy' not in sys.modules; print(sorted(dir(refimpl)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(refimpl.__all__) <= set(eval(done.stdout))
    for name in refimpl.__all__:
        assert getattr(refimpl, name).__name__.rpartition(".")[2] == name
    assert cli.VERBS


def test_a_function_hides_no_module() -> None:
    """`import refimpl.classifier` used to give the function of that name, or the module."""
    for name in ("classifier", "segmenter"):
        function = getattr(refimpl, name)
        module = importlib.import_module(f"refimpl.{name}s")
        assert getattr(refimpl, name) is function is getattr(module, name)
        assert importlib.util.find_spec(f"refimpl.{name}") is None


# --- names that are none --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("evaluate", "--data", ""), "--data"),
        (("evaluate", "--data="), "--data"),
        (("classify", ""), "IMAGE"),
        (("classify", SEVEN, "--model", ""), "--model"),
        (("report", SEVEN, "-o", ""), "-o/--output"),
        (("golden", "compare", "", SMALL), "DIR"),
        (("golden", "make", "--random", 1, "--model", "didb_micro", "-o", ""), "-o/--output"),
        (("export", "didb_micro_mnist", "--c", ""), "--c"),
    ],
)
def test_an_empty_name_is_not_the_folder_here(tmp_path, monkeypatch, arguments, option) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(*arguments)
    assert (done.status, done.out) == (2, "")
    assert done.err.endswith(f"error: argument {option}: is empty; expected the name of a file\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (("models", "--jsn"), "unrecognized arguments: --jsn; did you mean '--json'?"),
        (("show", "didb_micro", "--blok=1"), "--blok=1; did you mean '--block'?"),
        (("train", "--data", SMALL, "--modle", "x"), "did you mean '--model'?"),
        (("classify", SEVEN, "--topp", 3), "did you mean '--top'?"),
        (("bench", "model", "--zzzz"), "unrecognized arguments: --zzzz"),
        (("models", "a\nb", "\x1b[31m"), r"error: unrecognized arguments: a\nb \x1b[31m"),
    ],
)
def test_the_nearest_option_is_told(arguments, meant) -> None:
    done = run(*arguments)
    assert (done.status, done.out) == (2, "")
    assert done.err.endswith(f"{meant}\n")


@pytest.mark.parametrize("kind", ["recipe", "ablation", "map", "class names"])
def test_a_pointer_of_git_lfs_is_told_of_a_text_too(tmp_path, kind) -> None:
    text = tmp_path / "text.json"
    text.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 3\n")
    out = ("-o", tmp_path / "o.safetensors")
    calls = {
        "recipe": ("train", "--data", SMALL, "--model", "didb_micro", "--recipe", text, *out),
        "ablation": ("ablate", "--data", SMALL, "--recipe", text, "-o", tmp_path / "o"),
        "map": ("golden", "compare", "small_tie_free", tmp_path, "--map", text),
        "class names": ("evaluate", "--data", SMALL, "--class-names", text),
    }
    assert_one_line(run(*calls[kind]), str(text), "a pointer of Git LFS, expected the file itself")


@pytest.mark.parametrize("verb", [("classify", SEVEN, "--model"), ("pack",), ("summary",)])
def test_a_model_that_is_no_file_is_told_what_it_is(tmp_path, verb) -> None:
    output = ("-o", tmp_path / "o.safetensors") if verb == ("pack",) else ()
    assert_one_line(run(*verb, tmp_path, *output), f"{tmp_path}: is a folder; expected a model")
    assert_one_line(run(*verb, os.devnull, *output), f"{os.devnull}: is no regular file")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--epochs", 0), "--epochs: recipe: epochs is 0"),
        (("--crop", 0.0001), "--crop: recipe: crop is 0.0001"),
        (("--set", "depth=0"), "--set depth: config: depth is 0"),
        (("--set", "dept=2"), "--set dept: config: unknown field 'dept'"),
        (("--set", "dept=2"), "did you mean 'depth'?"),
    ],
)
def test_the_option_that_set_it_is_named(tmp_path, arguments, words) -> None:
    call = ("train", "--data", SMALL, "--model", "didb_micro", "-o", tmp_path / "o.safetensors")
    assert_one_line(run(*call, *arguments), words)


def test_an_option_is_not_blamed_for_a_file(tmp_path, model) -> None:
    (tmp_path / "r.json").write_text('{"epochs": 0}')
    call = ("train", "--data", SMALL, "--model", "didb_micro", "-o", tmp_path / "o.safetensors")
    done = run(*call, "--recipe", tmp_path / "r.json", "--epochs", 3)
    assert_one_line(done)
    assert done.err.startswith(f"refimpl: {tmp_path / 'r.json'}: ")
    sized = run("classify", SEVEN, "--model", model, "--image-size", 27)
    assert_one_line(sized, f"--image-size: {model}: config: image_size has a side of 27")
