"""`refimpl.torch`: the reference's numbers out of PyTorch, training there, and the way back.

The oracle is the NumPy reference, which the mirror in `tests/torch_models` judges on its own.
"""

from __future__ import annotations

import copy
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

import refimpl
from refimpl.conventions import ConfigError, DtypeError, ShapeError
from refimpl.golden import candidate, compare, make, read, record
from refimpl.models import flatten
from refimpl.models.operations import OPERATIONS
from tests import golden_networks, networks, oracles, strategies, tolerances
from tests.checkpoint_files import FOLDERS

EXAMPLE = Path(__file__).parent.parent / "notebooks" / "train_in_torch.py"
CHECKPOINTS = [path for path in FOLDERS if "pyramid" not in path.name]  # those are refused
ANY = networks.all_configs() | networks.pyramids() | networks.others()
NAMED = {
    **networks.covering(),
    **networks.imported(),
    **{f"swin-{i}": networks.swin(**{**f, **networks.DIDB}) for i, f in enumerate(networks.SWINS)},
    **{
        f"real-swin-{i}": networks.swin(**{**f, "block": "real"})
        for i, f in enumerate(networks.SWINS)
    },
}


@pytest.fixture(scope="module")
def torch():
    return oracles.require("torch")


@pytest.fixture(scope="module")
def room(torch):
    return oracles.require("torch", "refimpl.torch")


def assert_equal(net: networks.Network) -> None:
    """Logits and every gradient of a module against the reference, in float64."""
    torch, room = oracles.require("torch"), oracles.require("torch", "refimpl.torch")
    logits, dimages, grads = net.run()
    module = room.module(net.model, net.params)
    images = torch.tensor(np.array(net.images), requires_grad=True)
    found = module(images)
    found.backward(torch.tensor(np.array(net.dlogits)))
    error = tolerances.disagreement(found.detach().numpy(), logits)
    oracles.note("refimpl.torch, logits", error)
    assert error <= tolerances.NETWORK_LOGITS
    largest = max(np.abs(dy).max() for dy in (dimages, *grads.values()))
    computed = {"images": images.grad.numpy()}
    for path, tensor in module.tensors().items():
        there = tensor.grad is not None
        computed[path] = tensor.grad.numpy() if there else np.zeros(tensor.shape)
    for path, expected in {"images": dimages, **grads}.items():
        floor = tolerances.STRUCTURAL_ZERO * largest
        error = tolerances.disagreement(computed[path], expected, floor)
        oracles.note("refimpl.torch, gradients", error, path)
        assert error <= tolerances.NETWORK_GRADIENTS, path


@pytest.mark.parametrize("name", NAMED)
def test_every_value_of_every_field(name):
    assert_equal(networks.make(NAMED[name], 1))


@pytest.mark.parametrize("name", ["didb-band_weights-fixed", "deit-pool-cls", "swin-6"])
def test_a_module_goes_by_no_name(name):
    assert_equal(networks.renamed(networks.make(NAMED[name], 1))[0])


@settings(max_examples=60)
@given(ANY, strategies.seeds())
def test_random_networks(config, seed):
    assert_equal(networks.make(config, seed))


@pytest.mark.parametrize("name", ["didb-rprelu-token", "deit-pool-cls", "distilled-patches"])
def test_images_of_another_size(name):
    net = networks.make(NAMED[name], 2)
    assert_equal(networks.with_images_of(net, (3, 5)))


@pytest.mark.parametrize("name", ["didb-pool-cls", "react-context-differences", "swin-1", "swin-6",
                                  "real-swin-1", *networks.imported()])  # fmt: skip
def test_nothing_is_left_on_another_device(torch, room, name):
    """The device "meta" has no numbers, and takes nothing that lies elsewhere."""
    net = networks.make(NAMED[name], 1, np.float32)
    module = room.module(net.model, net.params).to("meta", torch.bfloat16)
    images = torch.empty(net.images.shape, device="meta", dtype=torch.bfloat16)
    logits = module(images)
    assert logits.device.type == "meta" and logits.dtype == torch.bfloat16
    assert logits.shape == net.dlogits.shape
    logits.sum().backward()


def test_every_operation_of_a_list_has_its_function(room):
    assert set(OPERATIONS) <= set(vars(room.network.functions))


@pytest.mark.parametrize("name", ["didb-ste-clip", "react-context-differences", "deit-pool-cls",
                                  "binaryvit-boxes", "swin-1", "real-swin-6",
                                  "didb-binarize-activations", "react-binarize-none"])  # fmt: skip
def test_every_tap_is_that_of_the_reference(torch, room, name):
    net = networks.make(NAMED[name], 3)
    steps = record.trace(net.model, net.params, net.images, net.dlogits)
    module = room.module(net.model, net.params)
    images, dlogits = (torch.tensor(np.array(a)) for a in (net.images, net.dlogits))
    found = room.taps(module, images, dlogits)
    assert list(found) == [tap for tap in steps if tap != "input"]
    for tap, value in found.items():
        expected = steps[tap].value
        assert value.dtype == expected.dtype, tap
        if value.dtype.kind == "f":
            np.testing.assert_allclose(value, expected, rtol=1e-8, atol=1e-9, err_msg=tap)
        else:
            np.testing.assert_array_equal(value, expected, err_msg=tap)
    forward = room.taps(module, images)
    assert list(forward) == [tap for tap in found if not tap.startswith("grads/")]


@pytest.mark.parametrize("how", ["frozen", "inference"])
def test_gradients_are_of_the_network_whatever_its_owner_learns(torch, room, how):
    """A parameter that is frozen has its gradient, and so has a network that only answers."""
    net = networks.make(NAMED["didb-ste-clip"], 3)
    steps = record.trace(net.model, net.params, net.images, net.dlogits)
    module = room.module(net.model, net.params).requires_grad_(how != "frozen")
    with torch.inference_mode(how == "inference"):
        images, dlogits = (torch.tensor(np.array(a)) for a in (net.images, net.dlogits))
        found = room.taps(module, images, dlogits)
    for tap, value in found.items():
        np.testing.assert_allclose(value, steps[tap].value, rtol=1e-8, atol=1e-9, err_msg=tap)
    assert all(p.requires_grad == (how != "frozen") for p in module.parameters())
    assert all(p.grad is None for p in module.parameters())


def test_layers_may_share_a_parameter(torch, room, tmp_path):
    """The network is that of as many copies; the gradient of the one is the sum of theirs."""
    net = networks.make(networks.small(depth=2), 1)
    flat = flatten(net.params)
    shared = [f"blocks.{i}.attn.q.weight" for i in range(2)]
    flat[shared[1]] = flat[shared[0]]
    both = networks.Network(net.model, refimpl.models.unflatten(flat), net.images, net.dlogits)
    logits, _, grads = both.run()
    module = room.module(net.model, net.params)
    layers = [module.get_submodule(name.removesuffix(".weight")) for name in shared]
    layers[1].weight = layers[0].weight
    found = module(torch.tensor(np.array(net.images)))
    found.backward(torch.tensor(np.array(net.dlogits)))
    np.testing.assert_allclose(found.detach().numpy(), logits, rtol=1e-10, atol=1e-12)
    expected = grads[shared[0]] + grads[shared[1]]
    np.testing.assert_allclose(layers[0].weight.grad.numpy(), expected, rtol=1e-8, atol=1e-9)
    room.save(module, tmp_path / "shared.safetensors")
    saved = flatten(refimpl.load(tmp_path / "shared.safetensors")[1])
    assert all(np.array_equal(saved[name], flat[shared[0]]) for name in shared)


def test_a_tracer_leaves_nothing_behind(torch, room):
    """Tensors without values, as those of an export, are no constants of later runs."""
    tracer = oracles.require("torch", "torch._subclasses.fake_tensor").FakeTensorMode
    net = networks.make(networks.swin(**networks.DIDB), 5)
    module, images = room.module(net.model, net.params), torch.tensor(np.array(net.images))
    sys.modules["refimpl.torch.functions"]._made.cache_clear()  # as in a process that begins
    with tracer(allow_non_fake_inputs=True):
        module(torch.empty(images.shape, dtype=images.dtype))
    found = module(images)
    assert type(found) is torch.Tensor
    error = tolerances.disagreement(found.detach().numpy(), net.run()[0])
    assert error <= tolerances.NETWORK_LOGITS


def assert_passes(torch, room, bundle, tmp_path: Path) -> None:
    """A port like any other, in float32, with gradients."""
    module = room.module(bundle.model, bundle.params).to(torch.float32)
    images = torch.tensor(bundle.input.astype(np.float32))
    dlogits = torch.tensor(bundle.value("grads/logits").astype(np.float32))
    np.savez(tmp_path / "taps.npz", **room.taps(module, images, dlogits))
    for mode in ("replay", "free"):
        result = compare(bundle, candidate.read(tmp_path / "taps.npz"), mode=mode)
        assert result.outcome == "PASS", (mode, result.first)
        assert not result.missing


def test_taps_pass_the_comparison(torch, room, tmp_path):
    assert_passes(torch, room, golden_networks.bundle(tmp_path / "bundle"), tmp_path)


@pytest.mark.parametrize("folder", CHECKPOINTS, ids=lambda folder: folder.name)
def test_networks_of_others_pass(torch, room, folder, tmp_path):
    """Imported, run in PyTorch, and compared with their golden vectors."""
    model, params = refimpl.load_checkpoint(folder / "model.safetensors")
    images = np.load(folder / "input_f64.npy").astype(np.float32)
    make(tmp_path / "bundle", model, params, images, grads=True)
    assert_passes(torch, room, read(tmp_path / "bundle"), tmp_path)


def test_names_are_ours_and_statistics_do_not_move(torch, room):
    net = networks.make(networks.imported()["binaryvit-boxes"], 0)
    module = room.module(net.model, net.params)
    assert set(module.state_dict()) == set(flatten(net.params))
    moved = dict(module.named_parameters())
    assert not any("running" in path for path in moved)
    assert all(parameter.requires_grad for parameter in moved.values())
    fixed = networks.make(networks.small(**networks.DIDB, band_weights="fixed"), 0)
    names = dict(room.module(fixed.model, fixed.params).named_buffers())
    assert names and all(name.endswith("band_weight") for name in names)


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD"])
def test_a_step_moves_all_but_what_is_frozen(torch, room, optimizer, tmp_path):
    net = networks.make(networks.imported()["binaryvit"], 0, np.float32)
    module = room.module(net.model, net.params)
    stepper = getattr(torch.optim, optimizer)(module.parameters(), lr=0.1, weight_decay=0.1)
    module(torch.tensor(np.array(net.images))).square().sum().backward()
    stepper.step()
    room.save(module, tmp_path / "moved.safetensors")
    before = flatten(net.params)
    for path, after in flatten(refimpl.load(tmp_path / "moved.safetensors")[1]).items():
        if "running" in path:
            np.testing.assert_array_equal(after, before[path], err_msg=path)
        else:
            assert (after != before[path]).any(), path


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_a_module_comes_back_as_a_file(torch, room, tmp_path, dtype):
    net = networks.make(networks.small(**networks.DIDB), 0)
    module = room.module(net.model, net.params).to(getattr(torch, dtype))
    ones = torch.ones(1, *net.images.shape[1:], dtype=getattr(torch, dtype))
    assert module(ones).isfinite().all()
    path = tmp_path / "mine.safetensors"
    room.save(module, path, class_names=["a", "b", "c", "d"])
    model, params = refimpl.load(path)
    assert model.config == net.model.config and model.class_names == ("a", "b", "c", "d")
    for name, value in flatten(params).items():
        assert value.dtype == ("float64" if dtype == "float64" else "float32")
        np.testing.assert_array_equal(value, module.state_dict()[name].double().numpy())


def test_what_a_model_knows_of_its_images_comes_back(room, tmp_path):
    model, params = refimpl.load("didb_micro_mnist")
    room.save(room.module(model, params), tmp_path / "same.safetensors")
    again, _ = refimpl.load(tmp_path / "same.safetensors")
    assert again.preprocessing == model.preprocessing and again.class_names == model.class_names


def test_fresh_parameters_follow_the_seed_of_pytorch(torch, room):
    model = refimpl.create_model("react_micro")
    made = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        made.append(room.module(model).state_dict()["head.weight"])
    assert made[0].equal(made[1]) and not made[0].equal(made[2])


def test_evaluation_training_autocast_and_copies_are_one(torch, room):
    """What was made while nobody trained serves those who do: constants of windows."""
    net = networks.make(networks.swin(**networks.DIDB), 5, np.float32)
    module, images = room.module(net.model, net.params), torch.tensor(np.array(net.images))
    with torch.inference_mode():
        expected = module.eval()(images)
    with torch.autocast("cpu", torch.bfloat16):
        found = module.train()(images)
    assert found.equal(expected)
    found.sum().backward()
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    for other in (copy.deepcopy(module), torch.load(file, weights_only=False)):
        assert other(images).equal(expected)


def test_what_is_no_number_is_not_hidden_by_a_sign(torch, room):
    net = networks.make(networks.small(), 0)
    images = torch.tensor(np.array(net.images))
    images[0, 0, 0, 0] = float("nan")
    assert room.module(net.model, net.params)(images)[0].isnan().all()


def test_wrong_images_and_parameters_are_one_line(torch, room, tmp_path):
    net = networks.make(networks.small(), 0)
    module = room.module(net.model, net.params)
    with pytest.raises(DtypeError, match="images is torch.float32; expected torch.float64"):
        module(torch.zeros(1, 3, 4, 6))
    with pytest.raises(ShapeError, match="multiples of patch_size 2"):
        module(torch.zeros((1, 3, 4, 5), dtype=torch.float64))
    for shape in ((1, 2, 4, 6), (3, 4, 6), (0, 3, 4, 6)):
        with pytest.raises(ShapeError, match="any, 3, H, W"):
            module(torch.zeros(shape, dtype=torch.float64))
    images = torch.tensor(np.array(net.images))
    for ask in (module, lambda images: room.taps(module, images)):
        with pytest.raises(DtypeError, match="images is of type ndarray; expected a torch.Tensor"):
            ask(net.images)
        with pytest.raises(DtypeError, match="images is torch.uint8; expected torch.float64"):
            ask(images.to(torch.uint8))
    with pytest.raises(DtypeError, match="dlogits is of type ndarray; expected a torch.Tensor"):
        room.taps(module, images, net.dlogits)
    with pytest.raises(ShapeError, match=r"dlogits has shape \(1, \d+\); expected that of the"):
        room.taps(module, images, torch.tensor(np.array(net.dlogits))[:1])
    with pytest.raises(ShapeError, match="patch_embed.weight: missing parameter"):
        room.module(net.model, {})
    with pytest.raises(ConfigError, match="not written: .* is on the device meta"):
        room.save(module.to("meta"), tmp_path / "x.safetensors")
    with pytest.raises(ConfigError, match="found Linear; expected what refimpl.torch.module made"):
        room.save(torch.nn.Linear(2, 2), tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_pytorch_is_loaded_on_demand_and_named_where_it_is_missing():
    found = run("import sys, refimpl, refimpl.models.vit; print('torch' in sys.modules)")
    assert found.stdout == "False\n"
    found = run("import sys; sys.modules['torch'] = None; import refimpl.torch")
    last = found.stderr.strip().splitlines()[-1]
    assert last == (
        "ModuleNotFoundError: refimpl.torch: PyTorch is not installed, expected the extra: "
        "pip install refimpl[torch]"
    )


def test_the_example_trains_and_comes_back(torch, tmp_path):
    path = tmp_path / "digits.safetensors"
    found = subprocess.run(
        [sys.executable, str(EXAMPLE), "-o", str(path)], capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    model, _ = refimpl.load(path)
    assert model.class_names is not None and model.preprocessing is not None
    assert "200 steps" in found.stdout and "the same logits" in found.stdout
