"""The benchmarks measure what they say; how fast anything is, is not tested here."""

from __future__ import annotations

import json
import math
import os
import sys

import numpy as np
import pytest

from refimpl import cli, engine, machine
from refimpl.bench import (
    host,
    kernels,
    launch,
    layers,
    measure,
    models,
    ours,
    peers,
    process,
    scaling,
    train,
    train_step,
    work,
)
from refimpl.bench.measure import Contender, Row
from refimpl.bench.peers import Peer, numpy_blas, openvino_cpu, torch_train
from refimpl.conventions import ConfigError, RefimplError
from refimpl.models import architectures, flatten
from refimpl.models.summary import summarise
from tests import networks, oracles, tolerances
from tests.command_line import assert_one_line, run

FIELDS = ["work", "who", "median_ms", "min_ms", "max_ms", "gmacs", "threads"]
QUICK = {"rounds": 2, "turn": 1e-4}

# Sizes that fill no block; OpenVINO takes the second, which is large enough for its counters.
PRODUCTS = kernels.works([(19, 37, 23), (70, 72, 130)], [(3, 21, 10)])


def assert_measured(rows: list) -> None:
    """Every row has a name and times, all of them positive and in order."""
    assert rows
    for row in rows:
        assert row.work
        assert 0 < row.min_ms <= row.median_ms <= row.max_ms < math.inf, row


def assert_rates(rows: list[Row], threads: int = 1) -> None:
    assert_measured(rows)
    for row in rows:
        assert row.who
        assert 0 < row.gmacs < math.inf
        assert row.threads == threads


# --- measurement ----------------------------------------------------------------------------------


def clockwork(who: str, one_call: float, turns: list[float], log: list) -> Contender:
    """A contender of whom a call takes so many milliseconds: alone, and in each turn of several."""
    several = iter(turns)

    def run(calls: int) -> float:
        log.append((who, calls))
        return (one_call if calls == 1 else calls * next(several)) / 1000

    return Contender(who, run, None, macs=6_000_000, threads=3)


def test_turns_are_taken_in_rounds_and_the_figure_is_the_median() -> None:
    log: list = []
    contenders = [
        clockwork("a", 2, [2, 6, 4], log),
        clockwork("b", 1, [3, 2, 1], log),
    ]
    entries = [("first", contenders[0]), ("second", contenders[1])]
    first, second = measure.compare(entries, 3, 0.02, lambda: log.append("round"))
    # two calls each tell how many fill a turn: 10 of 2 ms, 20 of 1 ms
    assert log[:4] == [("a", 1), ("a", 1), ("b", 1), ("b", 1)]
    assert log[4:] == [("a", 1), ("a", 10), ("b", 1), ("b", 20), "round"] * 3
    assert first == Row("first", "a", pytest.approx(4), 2, 6, pytest.approx(1.5), 3)
    assert second == Row("second", "b", pytest.approx(2), 1, 3, pytest.approx(3), 3)


def test_timed_counts_calls() -> None:
    calls = []
    assert measure.timed(lambda: calls.append(1))(7) > 0
    assert len(calls) == 7


# --- what is compared computes the same -----------------------------------------------------------


@pytest.mark.parametrize("product", PRODUCTS, ids=lambda product: product.name)
def test_all_products_are_the_exact_one(product) -> None:
    left = product.factor.astype(np.int64)
    expected = left @ product.b.astype(np.int64).swapaxes(-1, -2)
    answers = {c.who: c.answer for c in peers.build(kernels.PEERS, product, 1)}
    assert answers.pop("popcount roofline") is None
    for who, answer in answers.items():
        np.testing.assert_array_equal(answer(), expected, err_msg=who)
    assert {"refimpl", "refimpl with packing", "NumPy float32"} <= set(answers)


def test_openvino_takes_part_where_it_can() -> None:
    oracles.require("openvino")
    whos = [[c.who for c in openvino_cpu.products(product, 1)] for product in PRODUCTS]
    layouts = [
        f"OpenVINO end to end, {layout}" for layout in ("one row of pixels", "images of one pixel")
    ]
    assert whos == [[], ["OpenVINO node", *layouts], [], []]


@pytest.mark.parametrize("shell", [networks.small, networks.swin], ids=["tokens", "windows"])
def test_layers_count_the_work_of_a_network(shell) -> None:
    """Sizes in whole tiles of sixteen: multiply-adds of vectors are those of the cost table."""
    sizes = {"image_size": (16, 32), "patch_size": 4, "pool": "mean", "dim": 32, "heads": 1}
    if shell is networks.swin:
        sizes = {"image_size": (32, 32), "patch_size": 2, "window": 4, "dim": 32, "heads": 1}
    config = shell(**networks.DIDB, **sizes)
    (keys,) = {stage.num_keys for stage in config.stages}
    binary = 0
    for kind, vectors, instructions, _ in layers.count(config):
        words = {  # `count` says how instructions follow from them
            "product": (instructions - 4) / 3,
            "scores": (instructions + 1) / 3,
            "context": (instructions - 2) / 3,
        }
        length = keys if kind == "context" else 32 * words.get(kind, 0)
        binary += 16 * vectors * length
    assert binary == summarise(config).total.macs_1bit


def test_layers_of_a_network(monkeypatch) -> None:
    monkeypatch.setattr(layers, "ROOFLINE_WORDS", 100)
    progress = []
    rows = layers.run("react_micro", rounds=2, progress=lambda: progress.append(1))
    kinds = [row.kind for row in rows]
    assert len(progress) == 2
    assert {"embedding", "layer norm", "pack", "product", "scores", "head"} <= set(kinds)
    assert not {"bands", "neighbours", "windows"} & set(kinds)  # react has none
    assert math.isclose(sum(row.share for row in rows), 1)
    for row in rows:
        assert row.milliseconds > 0 and row.vectors > 0 and row.limit > 0
        assert math.isclose(row.nanoseconds * row.vectors, 1e6 * row.milliseconds)
    with pytest.raises(ConfigError, match="model is 'deit_micro'; expected one of"):
        layers.run("deit_micro")


def test_the_command_prints_layers() -> None:
    status, out, _ = run("bench", "layers", "--model", "react_micro", "--rounds", 1)
    assert status == 0
    table = out.split("\n\n")[1].splitlines()
    assert table[0].split()[:3] == ["react_micro", "ms", "share"]
    assert table[-1].split()[0] == "all"
    status, out, _ = run("bench", "layers", "--model", "react_micro", "--rounds", 1, "--json")
    assert list(json.loads(out)[0]) == list(layers.Row._fields)


def test_the_best_of_the_others_is_a_measure(monkeypatch, capsys) -> None:
    times = {"refimpl": 2, "a": 5, "b": 4}
    rows = [Row("didb", who, ms, ms, ms, 1.0, 1) for who, ms in times.items()]
    monkeypatch.setattr(models, "run", lambda names, **options: rows)
    assert cli.main(["bench", "model"]) == 0
    table = capsys.readouterr().out.split("\n\n")[1].splitlines()
    assert table[0].endswith("times the best peer")
    assert [line.split()[-1] for line in table[1:]] == ["2.00", "0.80", "1.00"]


def test_a_product_counts_its_multiply_adds() -> None:
    assert [p.macs for p in PRODUCTS] == [19 * 37 * 23, 70 * 72 * 130, *[3 * 21 * 10 * 21] * 2]
    assert [p.boolean for p in PRODUCTS] == [False, False, False, True]
    assert set(np.unique(PRODUCTS[3].a)) == {0, 1}


REAL = {"block": "real", "mlp_ratio": 4}


@pytest.mark.parametrize(
    "config",
    [
        networks.small(norm_eps=1e-6, **REAL),
        # windows of 3: OpenVINO takes heads for tokens where there are four of each
        networks.swin(**networks.SWINS[1], **REAL),
    ],
    ids=["deit", "swin"],
)
@pytest.mark.parametrize("peer", models.PEERS, ids=lambda peer: peer.name)
def test_the_others_compute_our_real_network(peer, config) -> None:
    for package in peer.requires:
        oracles.require(package)
    small = networks.make(config, seed=60, dtype=np.float32)
    network = work.Network("real", small.model.config, small.params, small.images)
    expected = small.model.predict(small.params, small.images)
    for contender in peer.build(network, 1):
        answer = contender.answer()
        assert answer.shape == expected.shape
        error = tolerances.disagreement(answer, expected, 0.0)
        oracles.note(f"bench: {contender.who} against our real network", error)
        # a scale for a whole matrix or row, of activations by one small batch
        roughly = {"float32": 2e-5, "bfloat16": 0.02}.get(contender.who.split()[-1], 0.4)
        assert error <= (0.4 if "int8" in contender.who else roughly), contender.who
        assert contender.macs == network.macs


@pytest.mark.parametrize(
    "fields",
    [networks.DIDB, {}, {"rprelu": "token"}, {"block": "real", "norm_eps": 1e-6}],
    ids=["didb", "react", "react-token", "real"],
)
@pytest.mark.parametrize("shell", [networks.small, networks.swin], ids=["tokens", "windows"])
def test_the_timed_mirror_has_our_logits_and_gradients(shell, fields) -> None:
    torch = oracles.require("torch")
    sizes = {"image_size": (6, 8)} if shell is networks.small else {}
    small = networks.make(shell(**sizes, **fields), seed=61)
    logits, _, gradients = small.run()
    mirror = torch_train.Mirror(small.model.config, flatten(small.params))
    answer = mirror(torch.tensor(small.images))
    answer.backward(torch.tensor(small.dlogits))
    error = tolerances.disagreement(answer.detach().numpy(), logits)
    oracles.note("bench: logits of the timed mirror", error)
    assert error <= tolerances.NETWORK_LOGITS
    assert list(mirror.parameters) == list(gradients)
    largest = max(np.abs(gradient).max() for gradient in gradients.values())
    for path, expected in gradients.items():
        found = mirror.parameters[path].grad.numpy()
        error = tolerances.disagreement(found, expected, tolerances.STRUCTURAL_ZERO * largest)
        oracles.note("bench: gradients of the timed mirror", error, path)
        assert error <= tolerances.NETWORK_GRADIENTS, path


def test_the_timed_mirror_is_written_for_every_architecture() -> None:
    """What a named architecture leaves at its default, the mirror does not know."""
    known = {"similarity", "attention", "rprelu", "block"}
    for name in architectures.CLASSIFIERS:
        fields = architectures.named(name).to_json()
        plain = networks.small(block=fields["block"]).to_json()
        for field in networks.SWITCHES:
            assert field in known or fields[field] == plain[field], (name, field)


@pytest.mark.parametrize(
    ("name", "depth"), [("react_micro", 1), ("deit_micro", 1), ("react_swin_micro", [1, 1])]
)
def test_all_trainers_go_the_same_way(name, depth) -> None:
    """The loss after a few steps too: optimizer, rate and decay are the same."""
    network = work.network(name, 3, depth=depth)
    losses = {}
    for who, trainer in train_step.TRAINERS.items():
        for package in trainer.requires:
            oracles.require(package)
        with trainer.start(trainer.load(), network, work.lesson(network.config, 3), 1) as step:
            losses[who] = [step() for _ in range(3)]
    expected = losses["refimpl"]
    assert expected[2] < expected[0]
    for found in losses.values():
        assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", ["didb_micro", "react_swin_micro"])
def test_the_twin_has_the_same_size(name) -> None:
    binary, real = (work.network(n, 2).config for n in (name, models.real_twin(name)))
    for field in ("image_size", "window", "dim", "depth", "heads", "mlp_ratio", "num_classes"):
        assert getattr(binary, field) == getattr(real, field)
    assert real.block == "real"


def test_a_network_counts_multiply_adds_of_all_images() -> None:
    one, three = (work.network("didb_micro", batch) for batch in (1, 3))
    assert three.macs == 3 * one.macs > 0
    assert three.images.shape == (3, 1, 28, 28)


# --- every number is measured ---------------------------------------------------------------------


def test_kernels() -> None:
    rows = kernels.run([(70, 72, 130)], [(2, 21, 10)], **QUICK)
    assert_rates(rows)
    works = ["70x72x130", "scores 2x21x10x21", "context 2x21x21x10"]
    assert list(dict.fromkeys(row.work for row in rows)) == works
    for name in works:
        found = [row.who for row in rows if row.work == name]
        assert found[0] == "refimpl"
        assert len(set(found)) == len(found)


def test_models() -> None:
    rows = models.run(["didb_micro"], batch=2, **QUICK)
    assert_rates(rows)
    assert rows[0].who == "refimpl"
    assert {row.work for row in rows} == {"didb_micro, batch 2"}


def test_scaling() -> None:
    rows = scaling.run("didb_micro", sides=[2, 3], batches=[1, 3], threads=2, **QUICK)
    assert_measured(rows)
    assert [(row.work, row.threads) for row in rows] == [
        ("didb_micro, 5 tokens", 1),
        ("didb_micro, 10 tokens", 1),
        ("didb_micro, batch 1", 1),
        ("didb_micro, batch 3", 1),
        ("didb_micro, batch 3", 2),
    ]


def test_train() -> None:
    arguments = ("bench", "train", "--model", "didb_micro", "--batch", 4, "--rounds", 1)
    status, out, err = run(*arguments, "--json")
    assert (status, "threads: 1" in err) == (0, True)
    rows = [train.Row(**row) for row in json.loads(out)]
    assert_measured(rows)
    assert {row.work for row in rows} == {"didb_micro, batch 4"}
    assert [row.who for row in rows[:2]] == ["refimpl", "refimpl with NumPy"]
    for row in rows:
        assert row.images_per_second == pytest.approx(4000 / row.median_ms)
        # an interpreter alone has some 10 MB; a number of kilobytes would be far outside
        assert 1 < row.over_imports_mb < row.peak_mb < 5000
        assert row.threads == 1


@pytest.fixture
def answers(monkeypatch) -> list[tuple]:
    """Nobody trains: who is asked, the variables he is given; all have the same answer."""
    asked = []

    def answer(arguments, environment):
        task = train_step.Task(**json.loads(arguments[2]))
        asked.append((task, environment))
        result = train_step.Result(loss=2.25, seconds=0.5 * len(asked), imported=10**6)
        return launch.Finished(json.dumps(result._asdict()), 1.0, 3 * 10**6)

    monkeypatch.setattr(launch, "python", answer)
    return asked


def test_trainers_take_turns_in_fresh_processes(nobody, answers) -> None:
    names = ["didb_micro", "deit_micro"]
    rows = train.run(names, batch=7, threads=3, rounds=2, steps=5)
    two = ["refimpl", "refimpl with NumPy"]
    assert [task.who for task, _ in answers] == 6 * two
    assert {task[2:] for task, _ in answers} == {(7, 3, 5)}
    for _, environment in answers:
        assert environment["OMP_NUM_THREADS"] == environment["NUMBA_NUM_THREADS"] == "3"
    # of the six processes of a model the first two are not counted
    first = train.Row("didb_micro, batch 7", "refimpl", 3.5, 2000, 1500, 2500, 3, 2, 3)
    assert rows[0] == first
    assert [row.who for row in rows] == 2 * two


def test_trainers_that_disagree_are_told(monkeypatch) -> None:
    def answer(arguments, environment):
        loss = 2.5 if "NumPy" in arguments[2] else 2.25
        return launch.Finished(json.dumps({"loss": loss, "seconds": 1.0, "imported": 1}), 1.0, 2)

    monkeypatch.setattr(launch, "python", answer)
    words = r"didb_micro: .* loss 2\.5 in refimpl with NumPy; expected 2\.25, that of refimpl,"
    with pytest.raises(RefimplError, match=words):
        train.run(["didb_micro"], rounds=1)


def test_process() -> None:
    rows = process.run(["didb_micro"], rounds=1)
    assert_measured(rows)
    works = [process.FLOOR, process.CALL, "classify", "classify, didb_micro"]
    assert [row.work for row in rows] == works
    # an interpreter alone has some 10 MB; a number of kilobytes would be far outside
    assert all(5 < row.peak_mb < 2000 for row in rows)


def test_a_process_that_fails_is_named(monkeypatch) -> None:
    monkeypatch.setattr(process.bundled, "digits", lambda: ["no such image"])
    with pytest.raises(RefimplError, match=r"classify no such image: exit status 2: .*no such"):
        process.run([], rounds=1)


def test_a_launcher_that_is_killed_is_told(monkeypatch) -> None:
    """It has no time to complain: memory ran out."""
    script = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    monkeypatch.setattr(launch, "_LAUNCHER", script)
    with pytest.raises(RefimplError, match="^bench: exit status -9$"):
        launch.python(["-c", "pass"])


def test_only_binary_architectures() -> None:
    for call in (lambda: models.run(["deit_micro"]), lambda: scaling.run("deit_micro")):
        with pytest.raises(
            ConfigError, match="model is 'deit_micro'; expected one of 'didb_micro'"
        ):
            call()


def test_any_number_of_rounds_is_begun(monkeypatch) -> None:
    def stop(*arguments: object) -> None:
        raise RefimplError("begun")

    monkeypatch.setattr(launch, "python", stop)
    with pytest.raises(RefimplError, match="begun"):
        process.run([], rounds=10**20)


@pytest.mark.parametrize("verb", ["kernels", "model", "scaling", "train"])
def test_no_more_threads_than_cpus(verb) -> None:
    most = f"expected at most {machine.cpus()}, the CPUs that this process may use"
    for threads in (machine.cpus() + 1, 10**20):
        result = run("bench", verb, "--threads", threads)
        assert_one_line(result, f"--threads: found {threads}, {most}")


def test_only_architectures_are_trained() -> None:
    result = run("bench", "train", "--model", "didb_huge", "--rounds", 1)
    assert result.status == 2
    assert "bench: model is 'didb_huge'; expected one of 'didb_micro'" in result.err


# --- who is missing -------------------------------------------------------------------------------


@pytest.fixture
def nobody(monkeypatch) -> None:
    """None of the other libraries can be imported."""
    for package in peers.PACKAGES:
        monkeypatch.setitem(sys.modules, package, None)


def test_all_are_named_as_missing(nobody) -> None:
    assert peers.missing(kernels.PEERS) == ["torch (needs torch)", "OpenVINO (needs openvino)"]
    assert peers.missing(models.PEERS) == [
        "torch (needs torch)",
        "ONNX Runtime (needs torch, onnx, onnxruntime)",
        "OpenVINO (needs torch, onnx, openvino)",
        "OpenVINO int8 (needs torch, onnx, openvino, nncf)",
    ]
    assert peers.missing(train.PEERS) == ["torch (needs torch)"]
    rows = kernels.run([(5, 40, 6)], [], **QUICK)
    assert [row.who for row in rows] == [
        "refimpl", "refimpl with packing", "popcount roofline", "NumPy float32"
    ]  # fmt: skip


def test_the_command_names_them_beside_the_answer(nobody) -> None:
    arguments = ("bench", "kernels", "--shape", "5x40x6", "--rounds", 1)
    status, out, err = run(*arguments)
    assert status == 0
    assert "missing: OpenVINO (needs openvino)\n" in out
    status, out, err = run(*arguments, "--json")
    assert status == 0
    assert "missing: torch (needs torch)\n" in err
    assert "OpenVINO" not in out
    assert len(json.loads(out)) == 4


def test_we_train_without_them(nobody, answers) -> None:
    arguments = ("bench", "train", "--model", "react_micro", "--batch", 2, "--rounds", 1)
    status, out, err = run(*arguments)
    assert status == 0
    assert "missing: torch (needs torch)\n" in out
    table = out.split("\n\n")[1].splitlines()
    assert table[0].split() == [
        "react_micro,", "batch", "2", "images/s", "ms", "a", "step", "peak", "MB",
        "over", "imports", "threads", "time", "/", "ours",
    ]  # fmt: skip
    assert [line.split("  ")[0] for line in table[1:]] == ["refimpl", "refimpl with NumPy"]
    assert table[1].endswith(" 1.00")


def test_who_is_there_is_not_missing() -> None:
    assert peers.missing([Peer("json", ("json",), numpy_blas.products)]) == []
    lacking = Peer("both", ("json", "no_such_package"), numpy_blas.products)
    assert peers.missing([lacking]) == ["both (needs no_such_package)"]
    assert peers.build([lacking], PRODUCTS[0], 1) == []


# --- the command ----------------------------------------------------------------------------------


def test_json_has_the_fields_in_order() -> None:
    status, out, _ = run("bench", "kernels", "--shape", "5x40x6", "--rounds", 1, "--json")
    assert status == 0
    for row in json.loads(out):
        assert list(row) == FIELDS
        assert [type(value) for value in row.values()] == [str, str, *[float] * 4, int]


def test_the_table_compares_with_ours() -> None:
    status, out, _ = run("bench", "kernels", "--shape", "5x40x6", "--rounds", 1)
    assert status == 0
    table = out.split("\n\n")[1].splitlines()
    assert table[0].split()[0] == "5x40x6"
    assert table[0].endswith("time / ours")
    assert table[1].startswith("refimpl ")
    assert table[1].endswith(" 1.00")
    assert len({len(line) for line in table}) == 1


def test_the_host_is_described() -> None:
    lines = host.describe(2)
    assert lines[0].endswith(f"{os.cpu_count()} logical processors")
    assert lines[1].startswith("features: ")
    assert f"numpy {np.__version__}" in lines[2]
    assert lines[3] == "threads: 2"
    assert len(host.describe()) == 3


def test_a_forced_blas_is_warned_of(monkeypatch) -> None:
    monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)
    assert host.warnings() == []
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    (line,) = host.warnings()
    assert "OPENBLAS_CORETYPE is Haswell" in line


@pytest.mark.parametrize("shape", ["5x40", "5x40x0", "5x40xa", "5x40x6x7"])
def test_a_shape_is_three_numbers(shape) -> None:
    status, out, err = run("bench", "kernels", "--shape", shape)
    assert (status, out) == (2, "")
    assert "is not three whole numbers" in err


def test_threads_are_the_same_for_all_and_put_back() -> None:
    torch = oracles.require("torch")
    before = torch.get_num_threads()
    with host.pinned(2):
        assert torch.get_num_threads() == 2
        network = work.network("deit_micro", 1)
        found = [peer.build(network, 2) for peer in models.PEERS if not peers.absent(peer.requires)]
        assert {contender.threads for built in found for contender in built} == {2}
    assert torch.get_num_threads() == before


def test_the_engine_has_its_threads_while_it_is_measured(monkeypatch) -> None:
    seen = []

    def spy(model, params, threads):
        seen.append(threads)
        return lambda images: None

    monkeypatch.setattr(engine, "compile", spy)
    (contender,) = ours.networks(work.network("didb_micro", 1), 7)
    contender.run(2)
    assert seen == [7]


@pytest.mark.parametrize("verb", ["kernels", "model", "train", "scaling", "process", "cluster"])
def test_the_examples_of_help_are_understood(verb) -> None:
    _, shown, _ = run("bench", verb, "--help")
    found = [line.split()[1:] for line in shown.splitlines() if line.startswith("  refimpl bench")]
    assert found
    for arguments in found:
        assert cli.parser().parse_args(arguments).run.__name__ == verb
