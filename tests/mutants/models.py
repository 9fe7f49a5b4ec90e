"""Wrong versions of the composition: the list of operations, and what walks it."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from refimpl.conventions import NonFiniteError
from refimpl.models import insides
from refimpl.models.nodes import INPUT, Network, Node
from tests import networks
from tests.mutants import mutant

NETWORKS = "test_models.test_each_value_of_each_field_against_torch"
Change = Callable[[Node], "Node | list[Node]"]  # a node -> what stands in its place


def edited(network: Network, change: Change) -> Network:
    """The list with other nodes; units and branches still hold what they held."""
    found = [change(node) for node in network.nodes]
    found = [[new] if isinstance(new, Node) else new for new in found]
    first = [0, *itertools.accumulate(map(len, found))]

    def moved(branch: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(j for i in branch for j in range(first[i], first[i + 1]))

    return replace(
        network,
        nodes=tuple(itertools.chain(*found)),
        units=tuple(unit._replace(nodes=moved(unit.nodes)) for unit in network.units),
        branches=tuple(tuple(map(moved, region)) for region in network.branches),
    )


def in_list(test: str, **arguments) -> Callable:
    """Register a mutant that is a change of nodes: its function is called with each of them."""

    def register(change: Change) -> Change:
        def make(original):
            @functools.cache
            def network(config, image_size=None):
                return edited(original(config, image_size), change)

            return network

        make.__name__, make.__doc__, make.__module__ = change.__name__, change.__doc__, __name__
        mutant("models.binary.network", test, **arguments)(make)
        return change

    return register


def attributes(node: Node, **changed) -> Node:
    """The node with other attributes."""
    return node._replace(attributes={**node.attributes, **changed})


def reading(node: Node, old: str, new: str) -> Node:
    """The node with another input."""
    return node._replace(inputs=tuple(new if name == old else name for name in node.inputs))


def behind(node: Node, op: str, name: str, **options) -> list[Node]:
    """The node, which reads `name` through one more operation."""
    between = f"{node.name}.between"
    extra = node._replace(
        name=between, op=op, inputs=(name,), params=(), attributes=options, outputs=(between,),
        tap="", inside={},
    )  # fmt: skip
    return [extra, reading(node, name, between)]


# the list: blocks


@mutant("ops.split_heads.forward", NETWORKS, name="react-pool-cls")
def heads_transposed(original):
    """Channel c belongs to head c mod heads instead of head c // d."""

    def forward(x, heads, transposed=False):
        batch, tokens, channels = x.shape
        x = x.reshape(batch, tokens, channels // heads, heads).swapaxes(2, 3)
        return original(x.reshape(batch, tokens, channels), heads, transposed)

    return forward


@in_list(NETWORKS, name="react-pool-cls")
def plain_scores_without_the_root_of_d(node):
    """1 / sqrt(d) is missing where there are no bands."""
    return attributes(node, divisor=1.0) if node.op == "divide" else node


@in_list(NETWORKS, name="didb-band_weights-fixed")
def fixed_band_weights_learn(node):
    """band_weights="fixed" gets a gradient all the same."""
    return node._replace(op="identity") if node.op == "stop_gradient" else node


@in_list(NETWORKS, name="didb-pool-cls")
def both_bands_are_the_low_one(node):
    """Queries and keys of the high band read the low one."""
    if node.op != "bands":
        return node
    low, high = node.outputs
    node = node._replace(outputs=(low, f"{high}.right"))
    silent, total = behind(
        node._replace(op="add", inputs=(low, f"{high}.right"), outputs=(high,), name=high,
                      attributes={}),
        "rescale", f"{high}.right", factor=0.0,
    )  # fmt: skip
    return [node, silent, total]


@in_list(NETWORKS, name="didb-pool-cls")
def bands_exchanged(node):
    """The low band is called the high one."""
    if node.op != "bands":
        return node
    return node._replace(outputs=node.outputs[::-1], name=node.outputs[1])


@in_list(NETWORKS, name="didb-pool-cls")
def shortcut_of_the_keys_forgotten(node):
    """m_k is not among the shortcuts of attention."""
    if not node.name.endswith(".attn.sum"):
        return node
    return node._replace(inputs=tuple(i for i in node.inputs if ".attn.k" not in i))


@in_list(NETWORKS, name="didb-pool-cls")
def neighbours_of_what_is_in_front(node):
    """The neighbour mean is that of the context, not of the values."""
    return reading(node, node.inputs[0], f"{node.layer.rpartition('.')[0]}.norm.out") if (
        node.op == "neighbours"
    ) else node  # fmt: skip


@in_list(NETWORKS, name="react-pool-cls")
def gradient_past_the_shortcut(node):
    """The gradient goes through the binary product only, not through fit(x)."""
    return behind(node, "stop_gradient", *node.inputs) if node.op == "fit" else node


@in_list(NETWORKS, name="react-pool-cls")
def shortcut_behind_the_move(node):
    """The shortcut of a projection holds its move, which so hears of it."""
    if node.op != "fit":
        return node
    return reading(node, node.inputs[0], node.inputs[0].removesuffix("x") + "z")


@in_list(NETWORKS, name="react-pool-cls")
def residual_stream_forgotten(node):
    """The gradient of a block's output does not reach its input past both branches."""
    if not node.name.endswith((".mid", ".out")) or node.op != "add":
        return node
    return behind(node, "stop_gradient", node.inputs[0])


@in_list(NETWORKS, name="react-pool-cls")
def mlp_reads_the_stream(node):
    """The first projection of the MLP reads what is in front of its norm, too."""
    if not node.name.endswith(".mlp.up.x"):
        return node
    p = node.name.removesuffix(".mlp.up.x")
    return node._replace(op="add", inputs=(*node.inputs, f"{p}.mid"))


@in_list(NETWORKS, name="react-pool-cls")
def the_mean_is_classified(node):
    """pool="cls" reads all tokens."""
    return attributes(node, pool="mean") if node.op == "pool" else node


@in_list(NETWORKS, name="deit-pool-cls")
def queries_and_keys_swapped(node):
    """The rows of qkv are taken for k, q, v."""
    if node.op != "split":
        return node
    q, k, v = node.outputs
    return node._replace(name=k, outputs=(k, q, v))


# the decoder


@in_list(NETWORKS, name="didb-decoder-linear")
def tokens_laid_out_on_the_grid_turned(node):
    """Rows of the grid are taken for columns."""
    return attributes(node, grid=node.attributes["grid"][::-1]) if node.op == "to_grid" else node


@mutant("ops.drop_class_token.backward", NETWORKS, name="didb-decoder-linear")
def the_class_token_hears_the_last_patch(original):
    """Gradients of patches begin at the class token."""

    def backward(dy, cache):
        (dx,) = original(dy, cache)
        return (np.roll(dx, -1, axis=1),)

    return backward


# images of another size

RESIZED = "test_models.test_images_of_another_size_against_torch"


@mutant("ops.resize_tokens._split", RESIZED, name="didb-pool-cls")
def class_token_last(original):
    """The entry of the class token is looked for behind those of the patches."""

    def _split(value, grid):
        first, maps = original(value, grid)
        entries = np.concatenate([first, maps.reshape(len(maps), -1).T])
        count = grid[0] * grid[1]
        return entries[count:], entries[:count].T.reshape(-1, *grid)

    return _split


@mutant("ops.resize_tokens._split", RESIZED, name="deit-pool-mean")
def grid_transposed(original):
    """Patches column by column."""

    def _split(value, grid):
        first, maps = original(value, grid)
        return first, maps.reshape(-1, *grid[::-1]).swapaxes(1, 2)

    return _split


@mutant("models.interpreter._through_parameters", RESIZED, name="didb-pool-cls")
def gradients_of_what_was_interpolated(original):
    """Parameters get the gradients of those that ran, thinned out to their own number."""

    def _through_parameters(names, gradients, cache):
        for name in names:
            if name in cache.network.of_parameters:
                (path,) = cache.network.nodes[cache.network.of_parameters[name]].params
                gradients[path] = np.resize(gradients.pop(name), cache.params[path].shape)

    return _through_parameters


@in_list(RESIZED, name="didb-pool-cls")
def alpha_keeps_its_size(node):
    """alpha is taken as it is for another number of keys."""
    return attributes(node, factor=1.0) if node.op == "rescale" else node


# windows

SWIN = "test_swin.test_each_size_against_torch"
SHIFTED = {"fields": {}, "sizes": networks.SWINS[0]}


@in_list(SWIN, **SHIFTED)
def nothing_masked(node):
    """Tokens that the roll has brought together see each other."""
    if node.op != "window_softmax":
        return node
    return node._replace(op="softmax", attributes={})


@in_list(SWIN, **SHIFTED)
def no_block_shifted(node):
    """All blocks have the same windows."""
    if node.op in ("windows", "join_windows"):
        return attributes(node, shift=0)
    return nothing_masked(node)


@in_list(SWIN, **SHIFTED)
def context_left_where_the_roll_put_it(node):
    """The context is put back without being rolled back."""
    return attributes(node, shift=0) if node.op == "join_windows" else node


# the pyramid

LEVELS = {"fields": {}, "sizes": networks.SWINS[-2]}
assert LEVELS["sizes"]["decoder"] == "fpn"


@in_list(SWIN, **LEVELS)
def nothing_comes_down(node):
    """Every level is its lateral alone."""
    if not node.name.endswith(".top"):
        return node
    return behind(node, "rescale", node.inputs[1], factor=0.0)


@mutant("ops.interpolate.backward", SWIN, **LEVELS)
def gradient_of_the_mean(original):
    """A token's gradient is divided among the tokens into which it was enlarged."""

    def backward(dy, cache):
        (dx,) = original(dy, cache)
        return (dx * dx.size / dy.size,)

    return backward


@in_list(SWIN, **LEVELS)
def the_pyramid_teaches_no_stage(node):
    """The output of a stage hears its merge alone."""
    if not node.layer.startswith("decoder.") or not node.layer.endswith(".norm"):
        return node
    return behind(node, "stop_gradient", *node.inputs)


# the interpreter

WALK = "test_interpreter"


@mutant("models.interpreter._add", NETWORKS, name="react-pool-cls")
def the_last_reader_is_heard_alone(original):
    """What a reader sends back takes the place of what others have sent."""

    def _add(gradients, names, found):
        gradients.update(zip(names, found, strict=False))

    return _add


@mutant("models.interpreter._add", NETWORKS, name="react-pool-cls")
def the_first_reader_is_heard_alone(original):
    """What a second reader sends back is dropped."""

    def _add(gradients, names, found):
        for name, gradient in zip(names, found, strict=False):
            gradients.setdefault(name, gradient)

    return _add


@mutant("models.interpreter._add", NETWORKS, name="react-pool-cls")
def gradients_are_added_in_place(original):
    """The sum is written into what the first reader has sent, which others may hold."""

    def _add(gradients, names, found):
        for name, gradient in zip(names, found, strict=False):
            if name in gradients:
                gradients[name] += gradient
            else:
                gradients[name] = gradient

    return _add


ONE = f"{WALK}.test_one_gradient_comes_back_for_each_argument"


@mutant("models.interpreter._add", ONE, name="too few")
def gradients_are_not_counted(original):
    """An argument of which nothing comes back is passed over."""

    def _add(gradients, names, found):
        for name, gradient in zip(names, found, strict=False):
            gradients[name] = gradients[name] + gradient if name in gradients else gradient

    return _add


@mutant(
    "models.nodes.Network.__post_init__",
    f"{WALK}.test_a_value_or_parameter_that_nobody_reads_is_refused",
)
def what_nobody_reads_is_listed(original):
    """A list may have values and parameters of which backward finds no gradient."""
    return lambda network: None


@mutant("models.units.steps_of", f"{WALK}.test_a_value_is_freed_by_its_last_reader")
def nothing_is_freed(original):
    """Values stay until the end."""
    return lambda network, twins: [s._replace(free=()) for s in original(network, twins)]


@mutant("models.units.steps_of", f"{WALK}.test_a_value_is_freed_by_its_last_reader")
def freed_by_the_first_reader(original):
    """A value goes when it was read once."""

    def steps(network, twins):
        found, seen = [], set()
        for step in original(network, twins):
            found.append(step._replace(free=tuple(n for n in step.inputs if n not in seen)))
            seen.update(step.inputs)
        return found

    return steps


@mutant("models.units.steps_of", f"{WALK}.test_a_value_is_freed_by_its_last_reader")
def the_image_is_never_freed(original):
    """Nor is what nobody reads."""

    def steps(network, twins):
        found = original(network, twins)
        return [s._replace(free=tuple(n for n in s.free if n != INPUT)) for s in found]

    return steps


@mutant("models.interpreter._run_node", f"{WALK}.test_prediction_holds_no_cache", name="react")
def caches_are_kept_in_front(original):
    """predict keeps what backward would need of the node in front."""
    kept = {}

    def _run_node(i, values, cache):
        original(i, values, cache)
        kept[i] = cache.nodes[i]

    return _run_node


@mutant(
    "models.interpreter._run_node",
    "test_models.test_nan_is_reported_by_the_layer_that_it_enters",
    path="blocks.1.attn.alpha", layer="blocks.1.attn",
)  # fmt: skip
def rows_of_summary_are_named(original):
    """What is not finite is reported by the part of the layer, not by the layer."""

    def _run_node(i, values, cache):
        try:
            original(i, values, cache)
        except NonFiniteError as error:
            layer = cache.network.nodes[i].layer
            raise NonFiniteError(error.message, layer=layer) from None

    return _run_node


@mutant(
    "models.interpreter.resized",
    "test_resize.test_alpha_goes_with_one_by_the_number_of_tokens", pool="cls", ratio=7 / 36,
)  # fmt: skip
def parameters_of_another_size_as_they_were(original):
    """What is made of parameters for another size is not kept."""
    return lambda network, params, other: {**original(network, params, other), **params}


@mutant(
    "models.nodes.Network.readers",
    f"{WALK}.test_what_readers_send_is_added_from_left_to_right",
    name="react", node="blocks.1.norm1.out", terms=[f"blocks.1.attn.{t}.x" for t in "qkv"],
)  # fmt: skip
def readers_from_behind(original):
    """What readers send is replayed in the other order."""

    def readers(network):
        return {name: found[::-1] for name, found in original.func(network).items()}

    return property(readers)


@mutant("models.nodes.Network.backward_order", f"{WALK}.test_branches_go_back_one_after_the_other")
def branches_in_the_order_of_the_list(original):
    """Backward goes through the list from behind, without regard to branches."""

    def backward_order(network):
        return [i for i in reversed(range(len(network.nodes))) if network.nodes[i].inputs]

    return property(backward_order)


@mutant("models.nodes.Network.backward_order", f"{WALK}.test_branches_go_back_one_after_the_other")
def the_last_branch_first(original):
    """Branches go back from the last to the first."""

    def backward_order(network):
        turned = replace(network, branches=tuple(region[::-1] for region in network.branches))
        return original.func(turned)

    return property(backward_order)


# twins of units

TWIN = "test_kernels_projection.test_values_to_the_bit_and_gradients_to_the_ladder"


@mutant("models.interpreter._twins", TWIN)
def no_unit_has_a_twin(original):
    """The backend's twins are never asked."""
    return lambda network, backend: frozenset()


@mutant("models.interpreter._run_unit", TWIN)
def norm_of_a_unit_bias_first(original):
    """A twin gets the bias of its norm in the place of the weight."""

    def _run_unit(step, values, cache):
        params = list(step.params)
        if step.unit.op == "projection":
            params[2:4] = params[3], params[2]
        return original(step._replace(params=tuple(params)), values, cache)

    return _run_unit


@mutant("models.interpreter._unit_backward", TWIN)
def gradients_of_a_unit_by_the_order_of_names(original):
    """A twin's gradients go to the parameters in alphabetical order."""

    def _unit_backward(step, gradients, cache):
        return original(step._replace(params=tuple(sorted(step.params))), gradients, cache)

    return _unit_backward


@mutant(
    "models.interpreter._step_by_step",
    "test_kernels_projection.test_a_listener_of_the_gradients_gets_every_step",
)
def a_unit_taken_apart_on_another_input(original):
    """A listener of gradients hears nodes that read something else than the twin did."""

    def _step_by_step(cache):
        units = {
            i: ran._replace(args=[np.flip(ran.args[0]), *ran.args[1:]])
            for i, ran in cache.units.items()
        }
        return original(cache._replace(units=units))

    return _step_by_step


# parameters by name

NAMES = "test_names.test_order_of_keys_never_matters"


@mutant("models.interpreter.backward", f"{NAMES}_in_backward")
def rprelus_gradients_by_position(original):
    """RPReLU's gradients go to its parameters in the order of the dict that was given."""

    def backward(dlogits, cache, tap=None):
        dimages, grads = original(dlogits, cache, tap)
        ours, theirs = ([p for p in paths if ".rprelu." in p]
                        for paths in (cache.network.parameters, cache.params))  # fmt: skip
        return dimages, {**grads, **{b: grads[a] for a, b in zip(ours, theirs, strict=True)}}

    return backward


@mutant("models.vit.flatten", f"{NAMES}_in_forward")
def norms_by_position(original):
    """The first parameter of a norm is its weight, whatever it is called."""

    def flatten(tree):
        flat = original(tree)
        norms = [path for path in flat if path.endswith((".norm.bias", ".norm.weight"))]
        pairs = {}
        for path in norms:
            pairs.setdefault(path.rpartition(".")[0], []).append(flat[path])
        for p, (weight, bias) in pairs.items():
            flat |= {f"{p}.weight": weight, f"{p}.bias": bias}
        return flat

    return flatten


# taps and their replay

REPLAY = "test_taps.test_the_op_of_a_tap_on_its_inputs_gives_its_value"
ORDER = "test_taps.test_order_of_a_shipped_bundle"


@mutant("models.replay._Maker.summed", REPLAY)
def one_reader_replayed(original):
    """The gradient of a value is what its first reader sends back."""

    def summed(self, name):
        i, position = self.network.readers[name][0]
        return self._part(i, position)

    return summed


@mutant("models.replay._Maker.made", REPLAY)
def hidden_nodes_are_left_out(original):
    """What no one hears between two taps is not computed: moves of the heads, layer scale."""

    def made(self, name):
        node = self.network.nodes[self.network.maker[name]]
        if node.tap == "" and node.op in ("shift", "layer_scale"):
            return self.value(node.inputs[0])
        return original(self, name)

    return made


@mutant("models.replay._Maker.made", REPLAY)
def the_first_of_several_outputs(original):
    """The high band is replayed as the low one."""

    def made(self, name):
        node = self.network.nodes[self.network.maker[name]]
        return original(self, node.outputs[0] if node.op == "bands" else name)

    return made


@mutant("models.replay._Maker.gradient", REPLAY)
def gradients_of_hidden_sums_are_those_of_their_terms(original):
    """A gradient that no one hears is taken from any term, also one that others read."""

    def gradient(self, name):
        if name in self.network.maker and name not in self.visible.gradients:
            node = self.network.nodes[self.network.maker[name]]
            for term in node.inputs if node.op == "add" else ():
                if term in self.visible.gradients and term != self.own_gradient:
                    return self._read(f"grads/{term}")
        return original(self, name)

    return gradient


@mutant(
    "models.insides.to_tap", "test_taps.test_the_table", name="didb-pool-cls", dtype=np.dtype(float)
)
def bits_are_heard_as_numbers(original):
    """A listener gets -1 and +1."""
    return lambda kind, value: value if kind == "bit" else original(kind, value)


@mutant("models.insides.from_tap", REPLAY)
def bits_are_replayed_as_0_and_1(original):
    """An operation is run again on what the listener got, not on signs."""
    return lambda kind, value, dtype: value.astype(dtype)


@mutant("models.replay._has_gradient", ORDER, name="small_tie_free")
def every_gradient_is_shown(original):
    """Also those of values that no one hears."""
    return lambda visible, name: True


@mutant("models.replay.OPERATIONS", ORDER, name="small_tie_free")
def nothing_is_late(original):
    """Gradients of what combines branches are shown before those of the branches."""
    return {name: found._replace(late=False) for name, found in original.items()}


@mutant("models.replay.OPERATIONS", ORDER, name="small_tie_free")
def differential_in_the_order_of_its_arguments(original):
    """Its gradients are shown shortcut first."""
    return {name: found._replace(order=()) for name, found in original.items()}


@mutant("models.replay._schedule", ORDER, name="small_tie_free")
def what_waits_is_shown_last_first(original):
    """What several branches read is shown in the order in which it is complete."""

    def _schedule(visible):
        network, found = visible.network, original(visible)
        for region in network.branches:
            first, last = min(region[0]), min(region[-1])
            targets = found[network.backward_order.index(last)]
            places = [k for k, t in enumerate(targets) if network.maker.get(t.source, last) < first]
            turned = [targets[k] for k in reversed(places)]
            for k, target in zip(places, turned):
                targets[k] = target
        return found

    return _schedule


@mutant("models.replay._of_node", ORDER, name="small_tie_free")
def readers_show_nothing_for_others(original):
    """z is shown by the node that makes it, in front of the weights."""

    def _of_node(visible, i):
        node = visible.network.nodes[i]
        shown = list(original(visible, i))
        steps = insides.of(node)
        if steps is None or "weight.z" not in steps.values:
            return shown
        return sorted(shown, key=lambda s: not s.name.endswith(".z") or "weight" in s.name)

    return _of_node
