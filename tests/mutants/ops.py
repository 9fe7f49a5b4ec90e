"""Wrong versions of the operations."""

from __future__ import annotations

import math

import numpy as np

from refimpl import ops
from tests.mutants import mutant

# sign, weights


@mutant("ops.sign.forward", "test_sign.test_against_torch")
def sign_of_zero_is_minus_one(original):
    """z > 0 instead of z >= 0."""

    def forward(z, ste="polynomial"):
        y, cache = original(z, ste)
        return np.where(z == 0, -y, y), cache

    return forward


@mutant("ops.sign.forward", "test_sign.test_against_torch")
def sign_of_minus_zero_is_minus_one(original):
    """The sign bit of the float instead of the comparison."""

    def forward(z, ste="polynomial"):
        _, cache = original(z, ste)
        return np.copysign(np.ones_like(z), z), cache

    return forward


@mutant("ops.sign.surrogate", "test_sign.test_against_torch")
def clip_is_open_at_one(original):
    """|z| < 1 instead of |z| <= 1."""

    def surrogate(z, ste="polynomial"):
        return original(z, ste) * (np.abs(z) != 1)

    return surrogate


@mutant("ops.sign.surrogate", "test_sign.test_against_torch")
def polynomial_without_its_floor(original):
    """2 - 2|z| goes on below 0 beyond |z| = 1."""

    def surrogate(z, ste="polynomial"):
        return original(z, ste) if ste == "clip" else 2 - 2 * np.abs(z)

    return surrogate


@mutant("ops.weight_binarizer.backward", "test_weight_binarizer.test_against_torch")
def gradient_through_the_weight_scale(original):
    """The estimator gets a factor of the size of the scale."""

    def backward(dy, cache):
        return original(dy * np.abs(cache.centred).mean(axis=1, keepdims=True), cache)

    return backward


@mutant("ops.weight_binarizer.backward", "test_weight_binarizer.test_against_torch")
def centring_forgotten_in_backward(original):
    """The gradient of Wc is taken for the gradient of W."""

    def backward(dy, cache):
        return (dy * (np.abs(cache.centred) <= 1),)

    return backward


@mutant("ops.weight_binarizer.backward", "test_weight_binarizer.test_against_torch")
def weight_clip_is_open_at_one(original):
    """|Wc| < 1 instead of |Wc| <= 1."""

    def backward(dy, cache):
        return original(dy * (np.abs(cache.centred) != 1), cache)

    return backward


@mutant("ops.weight_binarizer.binarize", "test_weight_binarizer.test_against_torch")
def scale_of_the_centred_weights(original):
    """mean |Wc| instead of mean |W|."""

    def binarize(weight):
        parts = original(weight)
        return parts._replace(scale=np.abs(parts.centred).mean(axis=1))

    return binarize


@mutant("ops.binary_linear.forward", "test_binary_linear.test_against_torch")
def weights_are_binary_in_stage_one(original):
    """binarize="activations" binarizes the weights as well."""

    def forward(x, weight, bias=None, *, binarize="full", ste="polynomial"):
        stage = "none" if binarize == "none" else "full"
        return original(x, weight, bias, binarize=stage, ste=ste)

    return forward


# boolean attention


@mutant("ops.boolean.forward", "test_boolean.test_against_torch")
def boolean_rounds_half_up(original):
    """q >= 1/2 instead of q > 1/2."""

    def forward(x, alpha):
        _, cache = original(x, alpha)
        cache = cache._replace(bit=cache.ratio >= 0.5)
        return np.maximum(alpha, x.dtype.type(1e-5)) * cache.bit, cache

    return forward


@mutant("ops.boolean.backward", "test_boolean.test_against_torch")
def boolean_alpha_gradient_has_the_other_sign(original):
    """q - round(q) instead of round(q) - q."""

    def backward(dy, cache):
        dx, dalpha = original(dy, cache)
        return dx, -dalpha

    return backward


@mutant("ops.boolean.backward", "test_boolean.test_against_torch")
def alpha_hears_nothing_above_one(original):
    """The term of q > 1 is missing from the gradient of alpha."""

    def backward(dy, cache):
        dx, _ = original(dy, cache)
        return dx, original(dx, cache)[1]

    return backward


@mutant("ops.boolean_attention.forward", "test_boolean_attention.test_against_torch")
def context_without_alpha(original):
    """The product of bits is not scaled."""

    def forward(prob, value, alpha, *, binarize="full", **options):
        y, cache = original(prob, value, alpha, binarize=binarize, **options)
        return (y if binarize == "none" else y / alpha), cache

    return forward


# rprelu


@mutant(
    "ops.boolean_attention.product", "test_boolean_attention.test_differences_are_those_of_pairs"
)
def own_value_counted_once(original):
    """k is forgotten: a query's own value is subtracted once, not once for each of its keys."""

    def product(weights, value, context="sum"):
        total = original(weights, value)
        return total if context == "sum" else total - value.swapaxes(-1, -2)

    return product


@mutant("ops.boolean_attention.backward", "test_boolean_attention.test_against_torch")
def no_gradient_through_the_number_of_ones(original):
    """k is taken for a constant in the gradient of the bits."""

    def backward(dy, cache):
        dprob, dvalue, dalpha = original(dy, cache)
        plain = original(dy, cache._replace(context="sum"))
        return plain[0], dvalue, dalpha

    return backward


@mutant("ops.rprelu.forward", "test_rprelu.test_against_torch")
def slope_on_the_wrong_side(original):
    """where(u > 0, slope u, u)."""

    def forward(x, shift_in, slope, shift_out, token_shift_in=None, token_shift_out=None):
        shifts = (token_shift_in, token_shift_out)
        y, cache = original(x, shift_in, slope, shift_out, *shifts)
        u = cache.shifted
        return y + np.where(u > 0, slope * u - u, u - slope * u), cache

    return forward


@mutant("ops.rprelu.backward", "test_rprelu.test_against_torch")
def kink_on_the_identity_side(original):
    """The gradient at u = 0 is dy instead of slope dy."""

    def backward(dy, cache):
        tiny = np.finfo(dy.dtype).tiny
        return original(
            dy, cache._replace(shifted=np.where(cache.shifted == 0, tiny, cache.shifted))
        )

    return backward


@mutant("ops.rprelu.forward", "test_rprelu.test_against_torch")
def token_shift_on_the_channel_axis(original):
    """token_shift_out is added along the last axis."""

    def forward(x, shift_in, slope, shift_out, token_shift_in=None, token_shift_out=None):
        y, cache = original(x, shift_in, slope, shift_out, token_shift_in, token_shift_out)
        if token_shift_out is not None:
            y = y - token_shift_out[:, None] + np.resize(token_shift_out, x.shape[-1])
        return y, cache

    return forward


@mutant("ops.rprelu.backward", "test_rprelu.test_against_torch")
def slope_hears_both_sides(original):
    """dslope sums dy u over all u."""

    def backward(dy, cache):
        dx, dshift_in, _, *rest = original(dy, cache)
        return dx, dshift_in, (dy * cache.shifted).sum(axis=(0, 1)), *rest

    return backward


# Haar and neighbours


@mutant("ops.haar.swt2", "test_haar.test_undecimated_against_torch")
def swapped_bands_of_rows_and_columns(original):
    """cH and cV change places. Their sum, which the network uses, does not notice."""

    def swt2(x, mode="edge", norm="average"):
        cA, (cH, cV, cD) = original(x, mode, norm)
        return cA, (cV, cH, cD)

    return swt2


@mutant("ops.haar._next", "test_bands.test_against_torch")
def periodic_instead_of_edge(original):
    """The block past the last row and column wraps."""

    def _next(x, axis, mode):
        return original(x, axis, "periodic")

    return _next


@mutant("ops.haar._next_adjoint", "test_bands.test_against_torch")
def adjoint_shifts_the_same_way(original):
    """The backward reads the neighbour that forward read, instead of giving to it."""

    def _next_adjoint(dy, axis, mode):
        return ops.haar._next(dy, axis, mode)

    return _next_adjoint


@mutant("ops.bands.forward", "test_bands.test_against_torch")
def no_class_token_in_the_high_band(original):
    """cls="both" behaves like "low"."""

    def forward(x, grid, mode="edge", cls="both"):
        return original(x, grid, mode, "low")

    return forward


@mutant("ops.bands.backward", "test_bands.test_against_torch")
def class_token_hears_one_band(original):
    """Its gradient comes from the low band only."""

    def backward(dy, cache):
        return original(dy, cache._replace(cls="low"))

    return backward


@mutant("ops.neighbours.forward", "test_neighbours.test_against_torch")
def eight_neighbours_at_the_border(original):
    """The mean at a corner divides by 8, although 3 exist."""

    def forward(x, grid, border="existing"):
        return original(x, grid, "eight")

    return forward


@mutant("ops.neighbours._pairs", "test_neighbours.test_against_torch")
def no_diagonal_neighbours(original):
    """Four neighbours instead of eight."""

    def _pairs(grid):
        for offset, pair in zip(ops.neighbours.OFFSETS, original(grid), strict=True):
            if 0 in offset:
                yield pair

    return _pairs


@mutant("ops.neighbours.backward", "test_neighbours.test_against_torch")
def gradient_divided_at_the_neighbour(original):
    """Each neighbour's own count divides, instead of that of the token it was counted for."""

    def backward(dy, cache):
        ones = cache._replace(divisor=np.ones_like(cache.divisor))
        (dx,) = original(dy, ones)
        first = dx.shape[1] - cache.divisor.size
        dx[:, first:] /= cache.divisor.reshape(-1, 1)
        return (dx,)

    return backward


@mutant("ops.differential.forward", "test_differential.test_against_torch")
def neighbours_are_added(original):
    """lam_s value + lam_n neighbour_mean."""

    def forward(value, neighbour_mean, shortcut, neighbour):
        _, cache = original(value, neighbour_mean, shortcut, neighbour)
        return shortcut * value + neighbour * neighbour_mean, cache

    return forward


# scores, projections


@mutant("ops.band_sum.forward", "test_band_sum.test_against_torch")
def band_sum_without_the_root_of_d(original):
    """The scores of the bands are not divided by sqrt(d)."""

    def forward(low, high, band_weight, head_dim):
        scores, cache = original(low, high, band_weight, head_dim)
        return scores * math.sqrt(head_dim), cache

    return forward


@mutant("ops.band_sum.forward", "test_band_sum.test_against_torch")
def band_weights_swapped(original):
    """Row 0 of band_weight weighs the high band."""

    def forward(low, high, band_weight, head_dim):
        return original(low, high, band_weight[::-1], head_dim)

    return forward


@mutant("ops.fit.forward", "test_fit.test_it_is_the_matrix_of_its_definition")
def shortcut_repeats_instead_of_tiling(original):
    """x0 x0 x1 x1 instead of x0 x1 x0 x1."""

    def forward(x, outputs):
        y, cache = original(x, outputs)
        if outputs > x.shape[-1]:
            y = np.repeat(x, outputs // x.shape[-1], axis=-1)
        return y, cache

    return forward


# interpolation


@mutant("ops.interpolate._cubic", "test_interpolate.test_against_torch")
def cubic_of_pillow(original):
    """The a of Pillow, and of torch where it smooths: -1/2."""

    def _cubic(t):
        return original(t) + np.where(t <= 1, (t - 1) * t**2, ((t - 5) * t + 8) * t - 4) / 4

    return _cubic


@mutant("ops.interpolate._weights", "test_interpolate.test_against_torch")
def image_goes_on_periodically(original):
    """Beyond the border comes the other end instead of the border's entry."""

    def _weights(inputs, outputs, mode):
        middle = original(3 * inputs, 3 * outputs, mode)[outputs : 2 * outputs]
        return middle.reshape(outputs, 3, inputs).sum(axis=1)

    return _weights


@mutant("ops.interpolate._weights", "test_interpolate.test_against_torch")
def corners_are_aligned(original):
    """The centres of the outermost pixels coincide, as with align_corners=True."""

    def _weights(inputs, outputs, mode):
        position = np.linspace(0, inputs - 1, outputs)
        share = np.maximum(0, 1 - np.abs(position[:, None] - np.arange(inputs)))
        return share if mode == "bilinear" else original(inputs, outputs, mode)

    return _weights


@mutant("ops.interpolate.backward", "test_interpolate.test_against_torch")
def gradient_interpolated_back(original):
    """The backward makes the gradient smaller as it would an image, instead of the adjoint."""

    def backward(dy, cache):
        sizes = [
            n if weights is None else weights.shape[1]
            for n, weights in zip(dy.shape[-2:], cache, strict=True)
        ]
        return (ops.interpolate.forward(dy, sizes)[0],)

    return backward


# convolution


@mutant("ops.convolution.forward", "test_convolution.test_against_torch")
def kernel_turned_around(original):
    """The convolution of mathematics instead of the correlation that networks call by its name."""

    def forward(x, weight, bias, grid):
        y, cache = original(x, np.ascontiguousarray(weight[:, :, ::-1, ::-1]), bias, grid)
        return y, cache._replace(weight=weight)

    return forward


@mutant("ops.convolution._padded", "test_convolution.test_against_torch")
def the_edge_goes_on(original):
    """Beyond the grid comes its edge once more instead of zeros."""

    def _padded(x, grid):
        inner = original(x, grid)[:, 1:-1, 1:-1]
        return np.pad(inner, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")

    return _padded


@mutant("ops.convolution.backward", "test_convolution.test_against_torch")
def gradient_seen_from_the_same_side(original):
    """dx is a convolution with the kernel as it is, not turned around."""

    def backward(dy, cache):
        turned = np.ascontiguousarray(cache.weight[:, :, ::-1, ::-1])
        dx = original(dy, cache._replace(weight=turned))[0]
        return dx, *original(dy, cache)[1:]

    return backward


# real operations


@mutant("ops.layer_norm.backward", "test_layer_norm.test_against_torch")
def layer_norm_gradient_is_zero(original):
    """dx = 0: what an upstream gradient of ones would show in any case."""

    def backward(dy, cache):
        dx, *rest = original(dy, cache)
        return np.zeros_like(dx), *rest

    return backward


@mutant("ops.layer_norm.backward", "test_layer_norm.test_against_torch")
def deviation_is_a_constant(original):
    """The backward forgets that the standard deviation moves with x."""

    def backward(dy, cache):
        _, *rest = original(dy, cache)
        dnormalised = dy * cache.weight
        return (dnormalised - dnormalised.mean(axis=-1, keepdims=True)) / cache.std, *rest

    return backward


@mutant("ops.layer_norm.forward", "test_layer_norm.test_against_torch")
def variance_is_unbiased(original):
    """Division by C - 1."""

    def forward(x, weight, bias, eps):
        biased = (x.shape[-1] - 1) / x.shape[-1]
        y, cache = original(x, weight, bias, eps * biased)
        return (y - bias) * math.sqrt(biased) + bias, cache

    return forward


@mutant("ops.layer_norm.forward", "test_layer_norm.test_against_torch")
def eps_outside_the_root(original):
    """sqrt(variance) + eps."""

    def forward(x, weight, bias, eps):
        _, cache = original(x, weight, bias, eps)
        std = np.sqrt(cache.std**2 - eps) + eps
        return cache.normalised * cache.std / std * weight + bias, cache

    return forward


@mutant("ops.softmax.forward", "test_softmax.test_against_torch")
def softmax_over_the_wrong_axis(original):
    """The columns sum to 1."""

    def forward(x):
        y, cache = original(x.swapaxes(-1, -2))
        return y.swapaxes(-1, -2).copy(), cache._replace(y=y.swapaxes(-1, -2).copy())

    return forward


@mutant("ops.softmax.backward", "test_softmax.test_against_torch")
def softmax_gradient_without_the_row_sum(original):
    """dx = dy y."""

    def backward(dy, cache):
        return (dy * cache.y,)

    return backward


@mutant("ops.gelu.forward", "test_gelu.test_against_torch")
def gelu_by_the_tanh_formula(original):
    """The approximation, wrong by 1e-3."""

    def forward(x):
        _, cache = original(x)
        inner = math.sqrt(2 / math.pi) * (x + x.dtype.type(0.044715) * x**3)
        return x * (0.5 + 0.5 * np.tanh(inner)), cache

    return forward


@mutant("ops.patch_embed.forward", "test_patch_embed.test_against_torch")
def pixels_of_a_patch_transposed(original):
    """Rows and columns inside a patch change places."""

    def forward(image, weight, bias):
        return original(image, weight.swapaxes(-1, -2), bias)

    return forward


@mutant("ops.cross_entropy.forward", "test_cross_entropy.test_against_torch")
def smoothing_over_the_other_classes(original):
    """e / (K - 1) for the wrong classes and 1 - e for the right one."""

    def forward(logits, target, smoothing=0.0):
        classes = logits.shape[1]
        return original(logits, target, smoothing * classes / (classes - 1))

    return forward


@mutant("ops.soft_cross_entropy.backward", "test_soft_cross_entropy.test_against_torch")
def gradient_of_the_sum_over_the_batch(original):
    """The loss is a mean over the batch, its gradient that of a sum."""

    def backward(dloss, cache):
        (dlogits,) = original(dloss, cache)
        return (dlogits * len(dlogits),)

    return backward


@mutant("ops.windows._cut", "test_windows.test_against_torch")
def rolled_the_other_way(original):
    """The last rows and columns become the first."""

    def _cut(grid, window, shift):
        return original(grid, window, (window - shift) % window)

    return _cut


@mutant("ops.windows.mask", "test_windows.test_mask_from_the_distance_on_the_grid")
def columns_not_masked(original):
    """Only rows from the other side are told apart."""

    def mask(grid, window, shift):
        rows = np.broadcast_to((np.arange(grid[0]) < shift)[:, None], grid)
        side = ops.windows._cut(rows, window, shift)
        return side[:, :, None] == side[:, None, :]

    return mask


@mutant("ops.position_bias.offsets", "test_position_bias.test_against_torch")
def offset_of_the_key_from_the_query(original):
    """Key minus query instead of query minus key."""
    return lambda window: original(window).T


@mutant("ops.merge_patches.forward", "test_merge_patches.test_against_torch_and_its_inverse")
def neighbours_row_by_row(original):
    """(0, 0), (0, 1), (1, 0), (1, 1) instead of Swin's order."""

    def forward(x, grid):
        y, cache = original(x, grid)
        a, b, c, d = np.split(y, 4, axis=-1)
        return np.concatenate([a, c, b, d], axis=-1), cache

    return forward


@mutant("ops.softmax.forward", "test_softmax.test_masked_against_torch")
def masked_after_the_sum(original):
    """Masked values are set to 0, but they were in the sum."""

    def forward(x, mask=None):
        y, cache = original(x)
        return (y, cache) if mask is None else (y * mask, cache)

    return forward


# pixels


@mutant("ops.pixel_cross_entropy.forward", "test_pixel_cross_entropy.test_against_torch")
def ignored_pixels_count_in_the_mean(original):
    """The sum of the labelled pixels is divided by all of them."""

    def forward(logits, target, smoothing=0.0, ignored=255):
        loss, cache = original(logits, target, smoothing, ignored)
        return loss * logits.dtype.type(cache.labelled.mean()), cache

    return forward


@mutant("ops.pixel_cross_entropy.backward", "test_pixel_cross_entropy.test_against_torch")
def gradient_of_an_unlabelled_pixel(original):
    """Every pixel hears the first one's gradient where it has none of its own."""

    def backward(dloss, cache):
        (dlogits,) = original(dloss, cache)
        dlogits = dlogits.copy()
        missing = ~cache.labelled
        dlogits.transpose(0, 2, 3, 1)[missing] = dlogits[0, :, 0, 0]
        return (dlogits,)

    return backward


# what lies between the operations with numbers


@mutant("ops.add.forward", "test_add.test_terms_are_added_from_left_to_right")
def terms_added_from_the_right(original):
    """a + (b + c) instead of (a + b) + c."""

    def forward(*terms):
        if len(terms) == 1:
            return original(*terms)
        return original(terms[0], forward(*terms[1:])[0])

    return forward


@mutant("ops.add.backward", "test_add.test_against_torch")
def gradient_shared_among_the_terms(original):
    """Every term gets its share of the gradient."""

    def backward(dy, cache):
        return (dy / cache.count,) * cache.count

    return backward


@mutant("ops.shift.backward", "test_shift.test_against_torch")
def move_hears_the_mean_of_the_tokens(original):
    """Its gradient is a mean over the tokens, no sum."""

    def backward(dy, cache):
        return dy, dy.mean(axis=1).sum(axis=0)

    return backward


@mutant("ops.divide.backward", "test_divide.test_against_torch")
def quotient_without_its_divisor_on_the_way_back(original):
    """The gradient is not divided."""
    return lambda dy, cache: (dy,)


@mutant("ops.rescale.backward", "test_rescale.test_against_torch")
def gradient_divided_by_the_factor(original):
    """The inverse of the product in the place of its adjoint."""
    return lambda dy, cache: (np.asarray(dy / dy.dtype.type(cache.factor)),)


@mutant(
    "ops.rescale.forward",
    "test_rescale.test_a_number_stays_an_array_of_its_type",
    dtype=np.dtype(np.float32),
)
def factor_in_full_precision(original):
    """The product is rounded to float32, its factor is not."""

    def forward(x, factor):
        y, cache = original(x.astype(np.float64), factor)
        return y.astype(x.dtype), cache

    return forward


@mutant("ops.stop_gradient.backward", "test_stop_gradient.test_against_torch")
def gradient_not_stopped(original):
    """It hands on what it should keep."""
    return lambda dy, cache: (dy,)


@mutant("ops.identity.backward", "test_identity.test_against_torch")
def identity_stops_the_gradient(original):
    """It keeps what it should hand on."""
    return lambda dy, cache: (np.zeros_like(dy),)


@mutant("ops.class_token.forward", "test_class_token.test_against_torch")
def class_token_behind_the_patches(original):
    """The class token is the last one."""

    def forward(x, token):
        y, cache = original(x, token)
        return np.roll(y, -1, axis=1), cache

    return forward


@mutant("ops.class_token.backward", "test_class_token.test_against_torch")
def class_token_hears_the_first_image(original):
    """Its gradient is not summed over the batch."""
    return lambda dy, cache: (dy[:, 1:], dy[:1, :1])


@mutant("ops.drop_class_token.backward", "test_drop_class_token.test_against_torch")
def dropped_token_hears_the_last_patch(original):
    """Gradients of the patches begin at the class token."""
    return lambda dy, cache: (np.roll(original(dy, cache)[0], -1, axis=1),)


@mutant("ops.position_embedding.backward", "test_position_embedding.test_against_torch")
def position_hears_the_mean_of_the_batch(original):
    """Its gradient is a mean over the images, no sum."""
    return lambda dy, cache: (dy, dy.mean(axis=0, keepdims=True))


@mutant("ops.pool.forward", "test_pool.test_against_torch")
def the_last_token_is_pooled(original):
    """pool="cls" reads the end of the sequence."""

    def forward(x, pool):
        y, cache = original(x, pool)
        return (x[:, -1] if pool == "cls" else y), cache

    return forward


@mutant("ops.pool.backward", "test_pool.test_against_torch")
def mean_pool_gradient_is_not_divided(original):
    """pool="mean" hands the whole gradient to every token."""

    def backward(dy, cache):
        (dx,) = original(dy, cache)
        return (dx * cache.tokens if cache.pool == "mean" else dx,)

    return backward


@mutant("ops.split.backward", "test_split.test_against_torch")
def parts_joined_in_reverse(original):
    """The gradient of the last part stands first."""
    return lambda dy, cache: original(dy[::-1], cache)


@mutant("ops.split_heads.forward", "test_split_heads.test_against_torch")
def every_other_channel_is_a_head(original):
    """Channel c belongs to head c mod heads instead of head c // d."""

    def forward(x, heads, transposed=False):
        order = np.arange(x.shape[-1]).reshape(-1, heads).T.reshape(-1)
        return original(x[..., order], heads, transposed)

    return forward


@mutant("ops.split_heads.backward", "test_split_heads.test_against_torch")
def heads_swap_with_channels_on_the_way_back(original):
    """Channels of the gradient lie by their place in a head first."""

    def backward(dy, cache):
        (dx,) = original(dy, cache)
        heads = dy.shape[1]
        return (dx.reshape(*dx.shape[:2], heads, -1).swapaxes(2, 3).reshape(dx.shape),)

    return backward


@mutant("ops.merge_heads.forward", "test_merge_heads.test_against_torch")
def heads_interleaved(original):
    """Channel c comes from head c mod heads."""

    def forward(x):
        y, cache = original(x)
        batch, heads, tokens, d = x.shape
        return x.transpose(0, 2, 3, 1).reshape(batch, tokens, heads * d), cache

    return forward


@mutant("ops.to_grid.forward", "test_to_grid.test_against_torch_and_its_inverse")
def tokens_laid_out_column_by_column(original):
    """The grid is filled down its columns instead of along its rows."""

    def forward(x, grid):
        y, cache = original(x, grid[::-1])
        return y.swapaxes(2, 3), cache

    return forward


@mutant("ops.from_grid.forward", "test_from_grid.test_against_torch")
def tokens_read_column_by_column(original):
    """Tokens are taken down the columns of the grid."""

    def forward(x):
        _, cache = original(x)
        return original(np.ascontiguousarray(x.swapaxes(2, 3)))[0], cache

    return forward


@mutant("ops.join_windows.forward", "test_join_windows.test_against_torch")
def windows_not_rolled_back(original):
    """Tokens stay where the roll has put them."""

    def forward(x, grid, window, shift=0):
        return original(x, grid, window)[0], ops.windows.Cache(grid, window, shift)

    return forward


@mutant("ops.join_windows.backward", "test_join_windows.test_against_torch")
def gradient_rolled_back(original):
    """The gradient is cut without being rolled."""
    return lambda dy, cache: original(dy, cache._replace(shift=0))


@mutant("ops.window_softmax.mask", "test_window_softmax.test_against_torch")
def both_sides_of_the_roll_seen(original):
    """Every key of a window is seen."""
    return lambda count, *place: np.ones_like(original(count, *place))


@mutant("ops.window_softmax.mask", "test_window_softmax.test_against_torch")
def images_of_a_batch_take_turns(original):
    """Masks lie window by window, all images of the first window in front."""

    def mask(count, grid, window, shift):
        seen = original(count, grid, window, shift)
        windows = grid[0] * grid[1] // window**2
        return np.repeat(seen[:windows], count // windows, axis=0)

    return mask


@mutant("ops.resize_tokens._split", "test_resize_tokens.test_against_torch")
def entry_of_the_class_token_behind(original):
    """The entry of the class token is looked for behind those of the patches."""

    def _split(x, grid):
        first, maps = original(x, grid)
        entries = np.concatenate([first, maps.reshape(len(maps), -1).T])
        count = grid[0] * grid[1]
        return entries[count:], entries[:count].T.reshape(-1, *grid)

    return _split


@mutant("ops.resize_tokens.backward", "test_resize_tokens.test_against_torch")
def parameter_gradient_interpolated_back(original):
    """The backward makes the gradient smaller as it would the parameter."""
    return lambda dy, cache: (ops.resize_tokens.forward(dy, cache.new_grid, cache.grid)[0],)
