"""Wrong versions of the composition: blocks and the network."""

from __future__ import annotations

import math

import numpy as np

from refimpl import ops
from tests import networks
from tests.mutants import mutant

NETWORKS = "test_models.test_each_value_of_each_field_against_torch"


@mutant("models.heads.split", NETWORKS, name="react-pool-cls")
def heads_transposed(original):
    """Channel c belongs to head c mod heads instead of head c // d."""

    def split(x, heads):
        batch, tokens, channels = x.shape
        return x.reshape(batch, tokens, channels // heads, heads).transpose(0, 3, 1, 2)

    return split


@mutant("models.similarity.forward", NETWORKS, name="react-pool-cls")
def plain_scores_without_the_root_of_d(original):
    """1 / sqrt(d) is missing where there are no bands."""

    def forward(params, b, run, *, name):
        scores, cache = original(params, b, run, name=name)
        if cache.band_sum is None:
            scores = scores * math.sqrt(run.config.head_dim)
        return scores, cache

    return forward


@mutant("models.similarity.backward", NETWORKS, name="didb-band_weights-fixed")
def fixed_band_weights_learn(original):
    """band_weights="fixed" gets a gradient all the same."""

    def backward(dscores, params, cache, run, *, name):
        learned = run._replace(config=run.config.replace(band_weights="learned"))
        return original(dscores, params, cache, learned, name=name)

    return backward


@mutant("models.attention._inputs", NETWORKS, name="didb-pool-cls")
def both_bands_are_the_low_one(original):
    """Queries and keys of the high band read the low one."""

    def _inputs(x, run, name, source):
        inputs, cache = original(x, run, name, source)
        if cache is not None:
            inputs = {**inputs, "q_high": inputs["q_low"], "k_high": inputs["k_low"]}
        return inputs, cache

    return _inputs


@mutant("models.attention_output.forward", NETWORKS, name="didb-pool-cls")
def shortcut_of_the_keys_forgotten(original):
    """m_k is not among the shortcuts of attention."""

    def forward(params, context, m, run, *, name):
        m = {t: np.zeros_like(v) if t.startswith("k") else v for t, v in m.items()}
        return original(params, context, m, run, name=name)

    return forward


@mutant("models.projection.backward", NETWORKS, name="react-pool-cls")
def gradient_past_the_shortcut(original):
    """The gradient goes through the binary product only, not through fit(x)."""

    def backward(dout, params, cache, run, *, name, source):
        dx, grads = original(dout, params, cache, run, name=name, source=source)
        dy, *_ = ops.rprelu.backward(dout, cache.rprelu)
        return dx - ops.fit.backward(dy, cache.fit)[0], grads

    return backward


@mutant("models.projection.backward", NETWORKS, name="react-pool-cls")
def move_hears_the_shortcut(original):
    """The move's gradient is that of x, although the shortcut goes around the move."""

    def backward(dout, params, cache, run, *, name, source):
        dx, grads = original(dout, params, cache, run, name=name, source=source)
        return dx, {**grads, "move": dx.sum(axis=(0, 1))}

    return backward


@mutant("models.block.backward", NETWORKS, name="react-pool-cls")
def residual_stream_forgotten(original):
    """The gradient of a block's output does not reach its input past both branches."""

    def backward(dy, params, cache, run, *, name, source):
        dx, grads = original(dy, params, cache, run, name=name, source=source)
        return dx - dy, grads

    return backward


@mutant("models.classification_head._pool", NETWORKS, name="react-pool-cls")
def the_last_token_is_classified(original):
    """pool="cls" reads the end of the sequence."""

    def _pool(x, config):
        return x[:, -1] if config.pool == "cls" else original(x, config)

    return _pool


@mutant("models.classification_head._pool_backward", NETWORKS, name="react-pool-mean")
def mean_pool_gradient_is_not_divided(original):
    """pool="mean" hands the whole gradient to every token."""

    def _pool_backward(dpooled, config):
        dx = original(dpooled, config)
        return dx * config.tokens if config.pool == "mean" else dx

    return _pool_backward


@mutant("models.real_block._split_qkv", NETWORKS, name="deit-pool-cls")
def queries_and_keys_swapped(original):
    """The rows of qkv are taken for k, q, v."""

    def _split_qkv(qkv, count):
        q, k, v = original(qkv, count)
        return k, q, v

    return _split_qkv


# the decoder


@mutant("models.linear_decoder.on_grid", NETWORKS, name="didb-decoder-linear")
def tokens_laid_out_column_by_column(original):
    """The grid is filled down its columns instead of along its rows."""

    def on_grid(token, grid):
        gh, gw = grid
        columns = token.swapaxes(1, 2).reshape(len(token), -1, gw, gh)
        return columns.swapaxes(2, 3)

    return on_grid


@mutant("models.linear_decoder._with_class_token", NETWORKS, name="didb-decoder-linear")
def the_class_token_hears_the_last_patch(original):
    """Gradients of patches begin at the class token."""

    def _with_class_token(dpatches, config):
        return np.roll(original(dpatches, config), -config.first_patch, axis=1)

    return _with_class_token


# images of another size

RESIZED = "test_models.test_images_of_another_size_against_torch"


@mutant("models.resize._split", RESIZED, name="didb-pool-cls")
def class_token_last(original):
    """The entry of the class token is looked for behind those of the patches."""

    def _split(value, grid):
        first, maps = original(value, grid)
        entries = np.concatenate([first, maps.reshape(len(maps), -1).T])
        count = grid[0] * grid[1]
        return entries[count:], entries[:count].T.reshape(-1, *grid)

    return _split


@mutant("models.resize._split", RESIZED, name="deit-pool-mean")
def grid_transposed(original):
    """Patches column by column."""

    def _split(value, grid):
        first, maps = original(value, grid)
        return first, maps.reshape(-1, *grid[::-1]).swapaxes(1, 2)

    return _split


@mutant("models.resize._adjoint", RESIZED, name="didb-pool-cls")
def gradients_of_what_was_interpolated(original):
    """Parameters get the gradients of those that ran, thinned out to their own number."""

    def _adjoint(grads, cache):
        given = original(grads, cache)
        return {path: np.resize(grads[path], gradient.shape) for path, gradient in given.items()}

    return _adjoint


# windows

SWIN = "test_swin.test_each_size_against_torch"
SHIFTED = {"fields": {}, "sizes": networks.SWINS[0]}


@mutant("models.heads.mask", SWIN, **SHIFTED)
def nothing_masked(original):
    """Tokens that the roll has brought together see each other."""

    def mask(stage, windows):
        return None

    return mask


@mutant("models.vit._layers", SWIN, **SHIFTED)
def no_block_shifted(original):
    """All blocks have the same windows."""

    def _layers(config):
        return [layer._replace(stage=layer.stage._replace(shift=0)) for layer in original(config)]

    return _layers


@mutant("models.heads.join", SWIN, **SHIFTED)
def context_left_where_the_roll_put_it(original):
    """The context is put back without being rolled back."""

    def join(x, stage):
        return original(x, stage._replace(shift=0))

    return join


# the pyramid

LEVELS = {"fields": {}, "sizes": networks.SWINS[-2]}
assert LEVELS["sizes"]["decoder"] == "fpn"


@mutant("models.feature_pyramid._tops", SWIN, **LEVELS)
def nothing_comes_down(original):
    """Every level is its lateral alone."""

    def _tops(laterals, run):
        return laterals, original(laterals, run)[1]

    return _tops


@mutant("models.feature_pyramid._adjoint", SWIN, **LEVELS)
def gradient_of_the_mean(original):
    """A token's gradient is divided among the tokens into which it was enlarged."""

    def _adjoint(dy, size, cache, backend):
        dx = original(dy, size, cache, backend)
        return dx * dx.shape[1] / dy.shape[1]

    return _adjoint


@mutant("models.fork.joined", SWIN, **LEVELS)
def the_pyramid_teaches_no_stage(original):
    """The output of a stage hears its merge alone."""

    def joined(dx, fork):
        return dx

    return joined
