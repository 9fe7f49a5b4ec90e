"""A cluster gives the numbers of one machine, whatever happens to its processes.

Real schedulers and workers; oracles are one machine's own evaluation and ablation, and, where there
are too many images for that, the answers for the few that are different.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import platform
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import refimpl
from refimpl import cli
from refimpl.conventions import ClusterError, ConfigError, DataError
from refimpl.data import datasets, image_folder, segmentation
from refimpl.data.preprocessing import Preprocessing
from tests import test_ablation as one_machine
from tests.command_line import (
    PATIENCE,
    assert_one_line,
    run,
    save_model,
    save_segmenter,
    wanting_signals,
    write_mnist,
)
from tests.test_data import encoded
from tests.test_data_sets import write_folder

distributed = pytest.importorskip("distributed", reason="Dask, the extra `cluster`, is missing")

import psutil  # noqa: E402  (which Dask needs)

from refimpl import cluster  # noqa: E402
from refimpl.bench import cluster as bench  # noqa: E402
from refimpl.cluster import batches, evaluation, sources, tasks, workers  # noqa: E402
from tests.dask_processes import Dask, wait_for  # noqa: E402

CLASSES = ("ant", "bee", "cow")
SIZE = (10, 12)
PROC = Path("/proc/self/cwd")  # a path that is another folder for a worker


@pytest.fixture(scope="module")
def dask(tmp_path_factory):
    """A scheduler with two workers, of one thread and of two."""
    with Dask(tmp_path_factory.mktemp("dask")) as processes:
        processes.worker("one")
        processes.worker("two", "--nthreads", "2")  # the last word is the one that counts
        yield processes


@pytest.fixture(scope="module")
def client(dask):
    with cluster.connected(str(dask.file)) as client:
        client.wait_for_workers(2, timeout=PATIENCE)
        yield client


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A classifier of three classes whose answers differ from image to image."""
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    return save_classifier(path, SIZE, patch_size=2)


def save_classifier(path: Path, size: tuple[int, int], **fields: int) -> Path:
    fields = {"dim": 8, "depth": 1, "num_classes": len(CLASSES), "channels": 3, **fields}
    network = refimpl.create_model("didb_micro", image_size=size, **fields)
    params = network.init(np.random.default_rng(90))
    params["head"]["weight"] *= 100
    plain = Preprocessing.plain(size, 3)
    refimpl.save(
        path, network, params, class_names=list(CLASSES), preprocessing=plain.to_json(),
        card={"data": "none"},
    )  # fmt: skip
    return path


def noise(count: int, seed: int = 91) -> list[bytes]:
    """Images of many sizes, as files."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(5, 30, (count, 2))
    return [
        encoded(Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))) for size in sizes
    ]


def tree(counts: tuple[int, ...] = (23, 18, 30)) -> dict[str, bytes]:
    """A test split with a broken image in the middle."""
    images = iter(noise(sum(counts)))
    found = {
        f"test/{name}/{number:03d}.png": next(images)
        for name, count in zip(CLASSES, counts, strict=True)
        for number in range(count)
    }
    return found


BROKEN = {"test/bee/007.png": b"no image", "test/cow/011.png": b""}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("folder"), tree())


@pytest.fixture(scope="module")
def broken(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("broken"), {**tree(), **BROKEN})


def timeless(result: object) -> dict:
    fields = dataclasses.asdict(result)
    assert fields.pop("images_per_second") > 0
    return fields


def here(model: Path, data: Path, batch_size: int = 7, **options):
    """One machine's evaluation of a classifier, and its Dataset."""
    classifier = refimpl.classifier(model, backend=options.pop("backend", "auto"))
    found = datasets.load(data, "test", classifier.preprocessing, **options)
    result = classifier.evaluate(found.images, found.labels, batch_size, ready=True)
    return timeless(result), found


# --- evaluation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["engine", "numpy"])
@pytest.mark.parametrize("batch_size", [7, 100])
def test_the_counts_are_those_of_one_machine(client, model, folder, backend, batch_size) -> None:
    found = cluster.evaluate(client, model, folder, backend=backend, batch_size=batch_size)
    assert timeless(found.result) == here(model, folder, batch_size, backend=backend)[0]
    assert (found.split, found.broken, found.result.count) == ("test", (), 71)
    assert 0 < found.result.top1 < 1  # else wrong counts could be equal


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library's memory")
def test_a_worker_keeps_what_it_frees_for_what_comes(client, model, folder) -> None:
    """Given back at once, as Dask has it, 200,000 pages would have to be cleared anew here."""

    def pages_cleared() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(20):
            arrays = [np.ones(2**17) for _ in range(40)]  # of a megabyte, as in a step
            del arrays
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    cluster.evaluate(client, model, folder)
    found = client.run(pages_cleared)
    assert found and max(found.values()) < 60_000


@pytest.mark.parametrize("suffix, mode", [("tar", "w"), ("tgz", "w:gz"), ("tar.xz", "w:xz")])
def test_an_archive_is_read_in_any_order(client, model, folder, tmp_path, suffix, mode) -> None:
    path = tmp_path / f"data.{suffix}"
    names = sorted(tree())
    np.random.default_rng(92).shuffle(names)
    with tarfile.open(path, mode) as archive:
        for name in names:
            archive.add(folder / name, name)
    expected, _ = here(model, path)
    found = cluster.evaluate(client, model, path, batch_size=7)
    assert timeless(found.result) == expected == here(model, folder)[0]
    zipped = shutil.make_archive(str(tmp_path / "data"), "zip", folder)
    assert timeless(cluster.evaluate(client, model, zipped, batch_size=7).result) == expected


def test_mnists_files_and_a_limit(client, tmp_path) -> None:
    data, path = (
        write_mnist(tmp_path / "data", {"test": 40}),
        save_model(tmp_path / "m.safetensors"),
    )
    expected, _ = here(path, data, limit=23)
    found = cluster.evaluate(client, path, data, limit=23, batch_size=5)
    assert (timeless(found.result), found.split) == (expected, "test")
    assert found.result.count == 23
    shipped = cluster.evaluate(client, path, data, limit=23, batch_size=5, ship_images=True)
    assert timeless(shipped.result) == expected


@pytest.mark.parametrize("ship_images", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_broken_images_are_those_of_one_machine(
    client, model, broken, tmp_path, ship_images, packed
) -> None:
    if packed:
        shutil.make_archive(str(tmp_path / "data"), "tar", broken)
        broken = tmp_path / "data.tar"
    options = {"batch_size": 7, "ship_images": ship_images}
    with pytest.raises(DataError) as expected:
        here(model, broken)
    with pytest.raises(DataError) as error:
        cluster.evaluate(client, model, broken, **options)
    assert str(error.value) == str(expected.value)
    result, data = here(model, broken, skip_broken=True)
    found = cluster.evaluate(client, model, broken, skip_broken=True, **options)
    assert (timeless(found.result), found.broken) == (result, data.broken)
    assert len(found.broken) == len(BROKEN)


def test_the_command_prints_what_one_machine_prints(dask, model, broken, monkeypatch, tmp_path):
    monkeypatch.chdir(broken.parent)  # the data set has a relative path
    names = tmp_path / "names.txt"
    names.write_text("".join(f"{name} the {name}\n" for name in CLASSES))
    file = refimpl.models.files.read(model)
    called = tmp_path / "called.safetensors"
    refimpl.save(
        called, file.model, file.params, class_names=[f"the {name}" for name in CLASSES],
        preprocessing=file.model.preprocessing.to_json(), card={},
    )  # fmt: skip
    command = ("evaluate", "--data", broken.name, "--model", called, "--skip-broken")
    command += ("--class-names", names)
    expected = run(*command)
    assert expected.status == 0
    found = run(*command, "--scheduler", dask.file, "--record")

    def steady(text: str) -> str:
        return re.sub(r"[\d.]+ images a second", "", text)

    assert (found.status, steady(found.out)) == (0, steady(expected.out))
    card = called.with_suffix(".json")
    assert found.err == f"{expected.err}recorded in {card}\n"
    assert json.loads(card.read_text())["evaluation"]["count"] == 71 - len(BROKEN)


def scenes(folder: Path) -> Path:
    """Images of several sizes with maps of ten classes, one pair broken."""
    rng = np.random.default_rng(93)
    (folder / "images" / "test").mkdir(parents=True)
    (folder / "annotations" / "test").mkdir(parents=True)
    names = refimpl.data.scenes.CLASS_NAMES
    (folder / "classes.txt").write_text("".join(f"{i} {n}\n" for i, n in enumerate(names, 1)))
    for number in range(9):
        size = (60 + 7 * number, 70)
        image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        maps = rng.integers(0, len(names) + 1, size, dtype=np.uint8)
        Image.fromarray(image).save(folder / "images" / "test" / f"{number}.png")
        Image.fromarray(maps).save(folder / "annotations" / "test" / f"{number}.png")
    (folder / "annotations" / "test" / "5.png").write_bytes(b"broken")
    return folder


@pytest.mark.parametrize("ship_images", [False, True])
def test_a_segmenters_confusion_is_that_of_one_machine(client, tmp_path, ship_images) -> None:
    data, path = scenes(tmp_path / "data"), save_segmenter(tmp_path / "model.safetensors")
    split = segmentation.find(data, "test").without_broken(image_folder.Workers(0))
    expected = timeless(refimpl.segmenter(path).evaluate(split))
    found = cluster.evaluate(client, path, data, skip_broken=True, ship_images=ship_images)
    assert timeless(found.result) == expected
    assert found.broken == split.broken
    assert found.result.confusion != np.diag(np.diag(found.result.confusion)).tolist()


@pytest.mark.skipif(not PROC.exists(), reason="no /proc")
def test_a_path_that_workers_do_not_see(client, model, folder, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(ClusterError, match="worker tcp://.*: /proc/self/cwd/test: no such folder"):
        cluster.evaluate(client, model, PROC / "test")
    found = cluster.evaluate(client, model, PROC / "test", batch_size=7, ship_images=True)
    assert timeless(found.result) == here(model, folder)[0]


def test_a_file_that_a_worker_does_not_see_is_not_a_broken_one(client, folder, tmp_path) -> None:
    source = sources.Folder(folder, Preprocessing.plain(SIZE, 3))
    with pytest.raises(ClusterError, match="gone.png: no such file"):
        source.read("test/ant/gone.png")
    path = tmp_path / "data.tar"
    path.write_bytes(Path(shutil.make_archive(str(tmp_path / "d"), "tar", folder)).read_bytes())
    seen = workers.Seen.of(path)
    with open(path, "ab") as file:
        file.write(bytes(512))
    assert re.search(r"found [\d,]+ bytes, expected the client's file of", seen.fault())


TINY, COPIES = (64, 64), 2000  # pixels of the model's images; copies of each of ten


def test_many_tiny_images_in_an_archive_take_little_memory(client, tmp_path) -> None:
    """All of them at the model's size would be 246 MB."""
    path, images = tmp_path / "tiny.tar", noise(10)
    with tarfile.open(path, "w") as archive:
        for place in range(10 * COPIES):
            member = tarfile.TarInfo(f"{CLASSES[place % 3]}/{place:05d}.png")
            member.size = len(images[place % 10])
            archive.addfile(member, io.BytesIO(images[place % 10]))
    model = save_classifier(tmp_path / "model.safetensors", TINY, patch_size=32)
    classifier = refimpl.classifier(model)
    answers = [classifier(Image.open(io.BytesIO(image)))[0].label for image in images]
    right = sum(answers[p % 10] == CLASSES[p % 3] for p in range(10 * COPIES))
    cluster.evaluate(client, model, path, limit=10)  # whatever starts once
    before = [_peak(), *client.run(_peak).values()]
    found = cluster.evaluate(client, model, path)
    assert found.result.count == 20_000
    assert found.result.top1 == right / 20_000
    grown = np.subtract([_peak(), *client.run(_peak).values()], before)
    assert grown.max() < 100e6


def _peak() -> int:
    """Bytes that this process has had at the most."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# --- what happens to processes --------------------------------------------------------------------


@contextlib.contextmanager
def own(folder: Path, *names: str, environment: dict[str, str] | None = None):
    """A cluster that may be damaged, and a client."""
    folder.mkdir(exist_ok=True)
    with Dask(folder, environment=environment) as processes:
        for name in names:
            processes.worker(name)
        with cluster.connected(str(processes.file)) as client:
            if names:
                client.wait_for_workers(len(names), timeout=PATIENCE)
            yield processes, client


def bar_that(acts):
    """Of `evaluate`: it acts when the first batch is over."""

    @contextlib.contextmanager
    def bar(title: str, total: int):
        seen = []

        def update(count: int) -> None:
            if not seen:
                acts()
            seen.append(count)

        yield type("Bar", (), {"update": staticmethod(update)})

    return bar


def test_a_worker_is_killed_then_the_scheduler(model, folder, tmp_path) -> None:
    with own(tmp_path / "dask", "one", "two") as (processes, client):
        kill = bar_that(processes.workers["one"].kill)
        found = cluster.evaluate(client, model, folder, batch_size=2, bar=kill)
        assert timeless(found.result) == here(model, folder, 2)[0]
        assert processes.workers["one"].wait() == -signal.SIGKILL
        start = time.monotonic()
        with pytest.raises(
            ClusterError, match=r"tcp://.*: the connection to the scheduler is lost"
        ):
            cluster.evaluate(
                client, model, folder, batch_size=1, bar=bar_that(processes.scheduler.kill)
            )
        assert time.monotonic() - start < tasks.PATIENCE  # it is not waited for


def test_a_lost_scheduler_is_one_line_of_the_command(model, folder, tmp_path, monkeypatch) -> None:
    from refimpl.cli import evaluate

    with own(tmp_path / "dask", "one") as (processes, _):
        monkeypatch.setattr(evaluate, "progress_bar", bar_that(processes.scheduler.kill))
        command = ("evaluate", "--data", folder, "--model", model, "--batch-size", 1)
        assert_one_line(run(*command, "--scheduler", processes.file), "scheduler is lost")


def test_a_task_that_kills_its_workers_is_given_up(tmp_path) -> None:
    one = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0"}
    with own(tmp_path / "dask", "one", environment=one) as (_, client):
        deadly = [tasks.Task(0, "batch 1", os._exit, (1,))]
        with pytest.raises(ClusterError, match=r"batch 1: .*allows \(1\), the last one tcp://"):
            list(tasks.results(client, deadly, ahead=1))


def test_a_worker_with_another_version(model, folder, tmp_path) -> None:
    other = tmp_path / "other" / "refimpl-0.0.9.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: refimpl\nVersion: 0.0.9\n")
    with own(tmp_path / "dask") as (processes, client):
        processes.worker("old", environment={"PYTHONPATH": str(other.parent)})
        client.wait_for_workers(1, timeout=PATIENCE)
        result = run("evaluate", "--data", folder, "--model", model, "--scheduler", processes.file)
        version = refimpl.__version__
        wanted = f"has refimpl 0.0.9; expected refimpl {version}, as the client has"
        assert_one_line(result, "worker tcp://127.0.0.1:", wanted)
        _one_that_comes_later(client, model, folder, processes)


def _one_that_comes_later(client, model, folder, processes) -> None:
    """It has passed no check of the client's: it asks itself."""
    needs = workers.Needs("a model", 0, False, (), workers.versions())
    with pytest.raises(ClusterError, match=r"has refimpl 0.0.9"):
        client.submit(workers.require_here, needs, pure=False).result()


def test_a_worker_with_too_little_memory(model, folder, tmp_path) -> None:
    with own(tmp_path / "dask") as (processes, client):
        processes.worker("small", "--memory-limit", "150MB")
        client.wait_for_workers(1, timeout=PATIENCE)
        with pytest.raises(ClusterError, match=r"of its 150 MB of memory are free, expected at le"):
            cluster.evaluate(client, model, folder, backend="engine")


def test_a_version_of_python_or_of_a_package_that_differs_is_named() -> None:
    ours = workers.versions()
    assert ours["python"].startswith("{}.{}.{}".format(*sys.version_info))
    assert ours["numpy"] == np.__version__
    assert workers.difference(dict(ours), ours) is None
    theirs = {**ours, "python": "3.1", "numba": None}
    fault = workers.difference(theirs, ours)
    assert fault.startswith("has no numba, python 3.1; expected numba ")


def test_an_engine_computes_in_the_thread_that_asks(model, monkeypatch) -> None:
    monkeypatch.setattr(workers, "require_here", lambda needs: None)
    monkeypatch.setattr(workers, "scratch", lambda: None)
    content = Path(model).read_bytes()
    sha256, options = hashlib.sha256(content).hexdigest(), {"backend": "engine"}
    engine = evaluation.Asked(content, sha256, options, None, None).model.engine
    before = threading.active_count()
    engine(np.random.default_rng(94).random((9, 3, *SIZE), dtype=np.float32))
    assert threading.active_count() == before


@pytest.mark.parametrize(
    "seconds, threads, left, expected",
    [
        (None, 2, 100, 1),  # nothing is known yet
        (0.1, 2, 1000, 10),  # a second
        (0.1, 2, 24, 3),  # a quarter of what a thread has left
        (0.1, 1000, 10**6, 150),  # 15 seconds, for a client of a thousand threads
        (30.0, 2, 1000, 1),
        (0.001, 1, 3, 3),
        (0.01, 2, 24, 10),  # a tenth of a second, though it is more than a quarter
    ],
)
def test_a_task_has_as_many_batches_as_keep_the_client_up(seconds, threads, left, expected):
    pace = batches._Pace(threads)
    if seconds is not None:
        pace.saw(7, 7 * seconds)
    assert pace.batches(left) == expected


@pytest.mark.parametrize(
    "scheduler, words",
    [
        ("nowhere.json", "nowhere.json: no such scheduler file"),
        ("", "'': no such scheduler file, expected one"),
        ("local:0", "local:0: expected local or local:N"),
        ("local:x", "local:x: expected local or local:N"),
        ("tcp://127.0.0.1:9", "tcp://127.0.0.1:9: cannot reach the scheduler"),
        ("what://127.0.0.1:9", "what://127.0.0.1:9: cannot reach the scheduler"),
        (Path(__file__), "not a scheduler file"),
    ],
)
def test_a_scheduler_that_is_none(model, folder, scheduler, words, monkeypatch) -> None:
    monkeypatch.setattr(cluster.connection, "TIMEOUT", 2)
    command = ("evaluate", "--data", folder, "--model", model, "--scheduler", scheduler)
    done = run(*command)
    assert_one_line(done, words)
    assert "download" not in done.err


@pytest.mark.parametrize("late", ["Client", "LocalCluster"])
def test_what_ends_late_is_no_error(monkeypatch, late) -> None:
    """On a busy machine workers take their time; the answer is there all the same."""

    class Late:
        scheduler_address = "tcp://127.0.0.1:1"

        def __init__(self, *given: object, **options: object):
            pass

        def close(self, timeout: float) -> None:
            raise TimeoutError

    class Prompt(Late):
        def close(self, timeout: float) -> None:
            pass

    for name in ("Client", "LocalCluster"):
        monkeypatch.setattr(cluster.connection, name, Late if name == late else Prompt)
    with cluster.connected("local:1") as client:
        assert client is not None


def test_a_batch_of_no_images_is_refused(model, folder) -> None:
    with pytest.raises(ConfigError, match="batch_size is 0, expected a whole number of at least 1"):
        cluster.evaluate(None, model, folder, batch_size=0)


def test_options_that_mean_nothing_are_refused(dask, model, folder, tmp_path) -> None:
    command = ("evaluate", "--data", folder, "--model", model)
    assert_one_line(run(*command, "--ship-images"), "--ship-images", "--scheduler")
    assert_one_line(run(*command, "--scheduler", dask.file, "--workers", 2), "--workers")
    ablate = ("ablate", "--recipe", one_machine.write_spec(tmp_path), "-o", tmp_path / "out")
    assert_one_line(run(*ablate, "--ship-checkpoints", 9), "--ship-checkpoints", "--scheduler")


def test_the_commands_of_its_readme_are_understood() -> None:
    text = (Path(cluster.__file__).parent / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"^(refimpl [^#\n]+)", text, re.MULTILINE)
    assert len(found) == 3
    for command in found:
        assert cli.parser().parse_args(shlex.split(command)[1:]).scheduler


def test_without_dask_it_is_one_line_and_nobody_else_needs_it(model, folder) -> None:
    code = (
        "import sys, refimpl, refimpl.cli\n"
        "refimpl.cli.parser()\n"
        "assert not {'dask', 'distributed'} & set(sys.modules)\n"
        "sys.modules['distributed'] = None\n"
        "sys.exit(refimpl.cli.main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", code, "evaluate", "--data", folder, "--model", model]
    command += ["--backend", "numpy"]
    done = subprocess.run([*command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    done = subprocess.run([*command, "--scheduler", "local"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"refimpl: .*pip install 'refimpl\[cluster\]'\n", done.stderr)


def test_local_workers_end_with_the_command(model, folder) -> None:
    mine = psutil.Process()
    before = set(mine.children(recursive=True))
    with cluster.connected("local:2") as client:
        client.wait_for_workers(2, timeout=PATIENCE)
        found = cluster.evaluate(client, model, folder, batch_size=7)
        started = set(mine.children(recursive=True)) - before
        assert len(started) >= 2
    assert timeless(found.result) == here(model, folder)[0]
    # what multiprocessing keeps for its own processes ends with this one
    wait_for(lambda: not [p for p in started if _alive(p) and "resource_tracker" not in _line(p)])


@pytest.mark.parametrize("sent, status", [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_an_interrupted_command_leaves_no_worker(tmp_path, sent, status) -> None:
    data, spec = _endless(tmp_path)
    process = _started("local:2", data, spec, tmp_path / "out")
    assert "runs on" in process.stderr.readline()
    started = psutil.Process(process.pid).children(recursive=True)
    assert len(started) >= 2
    os.killpg(process.pid, sent)  # as a terminal does
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == status
    wait_for(lambda: not [p for p in started if _alive(p)])
    if sent == signal.SIGINT:
        *progress, last = err.splitlines()
        assert last == "refimpl: interrupted: the same command goes on"
        assert not [line for line in progress if "seed" not in line]


def test_an_interrupt_cancels_what_it_started_and_nothing_else(dask, client, tmp_path) -> None:
    end = tmp_path / "end"
    mine = client.submit(_until, end, pure=False, workers=[min(client.nthreads())])
    data, spec = _endless(tmp_path)
    process = _started(dask.file, data, spec, tmp_path / "out")
    assert "runs on" in process.stderr.readline()
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    # the run ends on its worker, too: it does not only lose the one who waits for it
    wait_for(lambda: sum(map(len, client.processing().values())) == 1)
    wait_for(lambda: sum(client.run(_executing).values()) == 1)
    assert mine.status == "pending"
    end.touch()
    assert mine.result(timeout=PATIENCE) == "somebody else's"


def _until(path: Path) -> str:
    wait_for(path.exists)
    return "somebody else's"


def _executing(dask_worker) -> int:
    return dask_worker.state.executing_count


def _endless(folder: Path) -> tuple[Path, Path]:
    recipe = {**one_machine.SPEC["recipe"], "epochs": 10**6}
    spec = one_machine.write_spec(folder, recipe=recipe, rows=one_machine.SPEC["rows"][1:2])
    return training_data(folder / "data"), spec


def _started(scheduler: object, data: Path, spec: Path, out: Path) -> subprocess.Popen:
    command = ["ablate", "--recipe", spec, "--data", data, "-o", out, "--scheduler", scheduler]
    return subprocess.Popen(
        [sys.executable, "-m", "refimpl", *map(str, command), "--backend", "numpy", "--seed", "4"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=wanting_signals,
    )


def _line(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def _alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):  # it may end between the two questions
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


# --- ablation -------------------------------------------------------------------------------------


def training_data(folder: Path) -> Path:
    rng, found = np.random.default_rng(70), {}
    for split, count in {"train": 8, "test": 5}.items():
        for label, name in enumerate(CLASSES):
            for number in range(count):
                pixels = rng.integers(0, 99, (8, 8, 3), dtype=np.uint8)
                pixels[3 * label] = 240
                found[f"{split}/{name}/{number}.png"] = encoded(Image.fromarray(pixels))
    return write_folder(folder, found)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """Data, a spec, and `out`: the table of one machine."""
    folder = tmp_path_factory.mktemp("finished")
    spec = one_machine.write_spec(folder, curve_images=3)
    status, out, _ = one_machine.ablate(spec, training_data(folder / "data"), folder / "out")
    assert status == 0, out
    return folder


def ablated(client, finished: Path, folder: Path, told: list[str] | None = None, **options):
    return cluster.ablate(
        client, finished / "ablation.json", finished / "data", folder, backend="numpy",
        tell=(told if told is not None else []).append, **options,
    )  # fmt: skip


def same_runs(finished: Path, folder: Path) -> None:
    """Results in any order, weights to the bit, and nothing else is left."""
    lines = [sorted(map(str, one_machine.timeless(f / "runs.csv"))) for f in (finished, folder)]
    assert lines[0] == lines[1]
    files = [sorted((f / "unfinished").iterdir()) for f in (finished, folder)]
    assert [p.name for p in files[0]] == [p.name for p in files[1]]
    for ours, theirs in zip(*files, strict=True):
        if ours.suffix == ".safetensors":
            assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("ship_checkpoints", [None, 1, 7])
def test_a_table_is_that_of_one_machine(client, finished, tmp_path, ship_checkpoints) -> None:
    told: list[str] = []
    ablated(client, finished, tmp_path / "out", told, ship_checkpoints=ship_checkpoints)
    same_runs(finished / "out", tmp_path / "out")
    runs = len(one_machine.RUNS)
    assert told[-1].endswith(f"[{runs} done, 0 running, 0 waiting, 0 lost]")
    assert sum("runs on tcp://" in text for text in told) == runs
    assert any(re.search(r"running, \d waiting, 0 lost, [\d,]+ images/s", text) for text in told)
    card = next((tmp_path / "out" / "unfinished").glob("*.json"))
    assert json.loads(card.read_text())["cpus"] == [refimpl.training.processor.name()]


def test_a_table_begins_here_goes_on_there_and_ends_here(client, finished, tmp_path) -> None:
    spec, data, out = finished / "ablation.json", finished / "data", tmp_path / "out"
    assert one_machine.ablate(spec, data, out, "--row", "real").status == 0
    command = ("ablate", "--recipe", spec, "--data", data, "-o", out, "--backend", "numpy")
    scheduler = client.scheduler.address
    result = run(*command, "--row", "react", "--scheduler", scheduler, "--json")
    assert result.status == 0
    assert [len(row["seeds"]) for row in json.loads(result.out)["rows"]] == [1, 2, 0]
    assert one_machine.ablate(spec, data, out).status == 0
    same_runs(finished / "out", out)


class Killer(list):
    """Where lines are told: at the end of somebody's first epoch it acts on the run's worker."""

    def __init__(self, act):
        self.act, self.places = act, {}

    def append(self, text: str) -> None:
        super().append(text)
        name = text.partition(":")[0]
        if found := re.search(r"(tcp://\S+)", text):
            self.places[name] = found[1]
        if "epoch 1/" in text and self.act is not None:
            act, self.act = self.act, None
            act(self.places[name])


@pytest.mark.parametrize("ship_checkpoints", [None, 1])
def test_a_run_goes_on_where_its_worker_was_killed(finished, tmp_path, ship_checkpoints) -> None:
    with own(tmp_path / "dask", "one", "two") as (processes, client):
        told = Killer(lambda address: processes.kill(client, address))
        ablated(client, finished, tmp_path / "out", told, ship_checkpoints=ship_checkpoints)
        assert sum(process.poll() is not None for process in processes.workers.values()) == 1
    same_runs(finished / "out", tmp_path / "out")


def test_the_scheduler_is_killed_and_one_machine_goes_on(finished, tmp_path) -> None:
    with own(tmp_path / "dask", "one") as (processes, client):
        told = Killer(lambda address: processes.scheduler.kill())
        with pytest.raises(ClusterError, match="scheduler is lost"):
            ablated(client, finished, tmp_path / "out", told)
    spec, data = finished / "ablation.json", finished / "data"
    assert one_machine.ablate(spec, data, tmp_path / "out").status == 0
    same_runs(finished / "out", tmp_path / "out")


def test_another_cpu_is_told_and_named_by_the_card(client, finished, tmp_path, monkeypatch) -> None:
    from refimpl.training import loop, processor

    out, told = tmp_path / "out", []
    spec, data = finished / "ablation.json", finished / "data"
    with monkeypatch.context() as other:
        other.setattr(processor, "name", lambda: "Abacus 1")

        def interrupted(*args, **options):
            raise KeyboardInterrupt

        save = loop.files.save
        other.setattr(loop.files, "save", interrupted)
        chosen = ("--row", "react", "--seed", 4)
        assert one_machine.ablate(spec, data, out, *chosen).status == 130
        assert save is not loop.files.save
    ablated(client, finished, out, told, rows=["react"], seeds=[4])
    ours = processor.name()
    assert any(f"from Abacus 1 to {ours}: last bits may differ" in text for text in told)
    (card,) = (out / "unfinished").glob("*.json")
    assert json.loads(card.read_text())["cpus"] == ["Abacus 1", ours]


@pytest.mark.skipif(not PROC.exists(), reason="no /proc")
def test_folders_that_workers_do_not_see(client, finished, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ClusterError, match=r"worker tcp://.*: /proc/self/cwd/out/unfinished/.clus"):
        ablated(client, finished, PROC / "out", rows=["real"])
    assert not list((tmp_path / "out" / "unfinished").iterdir())
    ablated(client, finished, PROC / "out", rows=["real"], ship_checkpoints=1)
    assert (tmp_path / "out" / "runs.csv").is_file()
    (tmp_path / "data").symlink_to(finished / "data")
    with pytest.raises(ClusterError, match="/proc/self/cwd/data: no such folder"):
        cluster.ablate(client, finished / "ablation.json", PROC / "data", tmp_path / "new")


def test_a_run_that_fails_says_so_and_the_others_end(client, finished, tmp_path) -> None:
    recipe = {**one_machine.SPEC["recipe"], "learning_rate": 1e30}
    spec = one_machine.write_spec(tmp_path, recipe=recipe)
    with pytest.raises(refimpl.conventions.NonFiniteError, match="training diverged"):
        cluster.ablate(client, spec, finished / "data", tmp_path / "out", backend="numpy")
    spec = one_machine.write_spec(
        tmp_path, recipe={**one_machine.SPEC["recipe"], "distillation": 0.5, "teacher": "t.st"}
    )
    with pytest.raises(ConfigError, match="teacher is 't.st', expected a shipped model or an abs"):
        cluster.ablate(client, spec, finished / "data", tmp_path / "new", backend="numpy")


# --- TLS ------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl, which makes certificates")
def test_tls_by_dasks_own_configuration(model, folder, tmp_path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"),
            *("-keyout", key, "-out", certificate, "-subj", "/CN=127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    options = {"CA_FILE": certificate}
    options |= {f"{who}__{what}": path for who in ("CLIENT", "SCHEDULER", "WORKER")
                for what, path in (("CERT", certificate), ("KEY", key))}  # fmt: skip
    tls = {f"DASK_DISTRIBUTED__COMM__TLS__{name}": str(path) for name, path in options.items()}
    command = [sys.executable, "-m", "refimpl", "evaluate", "--data", folder, "--model", model]
    with Dask(tmp_path, "--protocol", "tls", environment=tls) as processes:
        processes.worker("one")
        address = json.loads(processes.file.read_text())["address"]
        assert address.startswith("tls://127.0.0.1:")
        command = [*map(str, command), "--scheduler", address, "--json"]
        done = subprocess.run(
            command, env={**os.environ, **tls}, capture_output=True, text=True, timeout=PATIENCE
        )
        assert (done.returncode, done.stderr) == (0, "")
        found = json.loads(done.stdout)
        assert found["top1"] == here(model, folder, 100)[0]["top1"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        assert (done.returncode, done.stdout) == (2, "")
        assert re.fullmatch(r"refimpl: tls://\S+: cannot reach the scheduler: .*\n", done.stderr)


# --- bench ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [1, 9])
def test_bench_has_an_image_of_every_class(images) -> None:
    status, _, err = run("bench", "cluster", "--images", images)
    assert status == 2
    assert f"images is {images}; expected at least 10 for didb_micro_mnist" in err


def test_bench_has_a_folder_for_every_class(monkeypatch, capsys) -> None:
    other = types.SimpleNamespace(class_names=("cock/hen", "cat"))
    monkeypatch.setattr(refimpl, "classifier", lambda name: other)
    assert cli.main(["bench", "cluster", "--images", "5"]) == 2
    expected = "didb_micro_mnist has a class cock/hen; expected the name of a folder"
    assert expected in capsys.readouterr().err


def test_bench_says_that_there_are_too_few_images() -> None:
    one, every = bench.Spent(wall=0.3, cpu=0.1), bench.Spent(wall=0.2, cpu=0.2)
    with pytest.raises(ConfigError, match="10 images took no longer than one; expected"):
        bench._an_image([(one, every)], 10)


def test_bench_divides_by_one_process_of_as_many_threads(model) -> None:
    status, out, _ = run(
        "bench", "cluster", "--model", model, "--images", 600, "--rounds", 1, "--json"
    )
    assert status == 0
    found = json.loads(out)
    rows = {(row["who"], row["threads"]): row for row in found["rows"]}
    assert len(rows) == 4
    for threads in (1, 2):
        ours, process = rows["refimpl", threads], rows["one process", threads]
        assert process["of_one_process"] is None
        ratio = ours["images_per_second"] / process["images_per_second"]
        assert ours["of_one_process"] == pytest.approx(ratio)
        assert ours["cpu_of_one_process"] == pytest.approx(process["cpu_ms"] / ours["cpu_ms"])
    limits, rate = found["limits"], rows["refimpl", 1]["images_per_second"]
    assert limits["smallest_task"] == pytest.approx(rate * limits["client_ms"])  # of 1000 workers
    assert limits["workers_of_listing"] == pytest.approx(limits["names_per_second"] / rate)
