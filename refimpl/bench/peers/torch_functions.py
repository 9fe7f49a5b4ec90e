"""Steps of `torch_train` whose gradient is declared [SPEC 2], or more work where autograd finds it.

Imported on demand, since it needs torch.
"""

from __future__ import annotations

import functools
import math

import torch
from torch.autograd import Function
from torch.nn import functional as F

SMALLEST = 1e-5  # of alpha


def sign_(z):
    return z.ge_(0).mul_(2).sub_(1)


def half_surrogate_(z):
    return torch.rsub(z.abs_(), 1).relu_()


def pixels(x):
    """(B, N, C) -> (B, C, 1, N), channels last: a view."""
    return x.permute(0, 2, 1).unsqueeze(2)


def product(x, weight):
    """x (B, N, I), weight (O, I) -> x W^T."""
    return F.conv2d(pixels(x), weight[:, :, None, None]).squeeze(2).permute(0, 2, 1)


class Sign(Function):
    @staticmethod
    def forward(ctx, x, move):
        ctx.save_for_backward(x, move)
        return sign_(x + move)

    @staticmethod
    def backward(ctx, dy):
        x, move = ctx.saved_tensors
        dz = half_surrogate_(x + move).mul_(dy).mul_(2)
        return dz, dz.sum((0, 1))


class SignLinear(Function):
    @staticmethod
    def forward(ctx, x, move, weight):
        ctx.save_for_backward(x, move, weight)
        return product(sign_(x + move), weight)

    @staticmethod
    def backward(ctx, dy):
        x, move, weight = ctx.saved_tensors
        z = x + move
        binary = pixels(sign_(z.clone()))
        dweight = torch.nn.grad.conv2d_weight(binary, (*weight.shape, 1, 1), pixels(dy))
        dz = half_surrogate_(z).mul_(product(dy, 2 * weight.mT))
        return dz, dz.sum((0, 1)), dweight.view_as(weight)


class BinaryWeight(Function):
    @staticmethod
    def forward(ctx, weight):
        ctx.save_for_backward(weight)
        scale = weight.abs().mean(1, keepdim=True)
        return sign_(weight - weight.mean(1, keepdim=True)).mul_(scale)

    @staticmethod
    def backward(ctx, dy):
        (weight,) = ctx.saved_tensors
        dcentred = (weight - weight.mean(1, keepdim=True)).abs_().le_(1).mul_(dy)
        return dcentred.sub_(dcentred.mean(1, keepdim=True))


class Mean(Function):
    """The shortcut of a projection with fewer outputs."""

    @staticmethod
    def forward(ctx, x, size):
        ctx.size = size
        return x.unflatten(2, (-1, size)) @ torch.full((size,), 1 / size, dtype=x.dtype)

    @staticmethod
    def backward(ctx, dy):
        dy = (dy / ctx.size).unsqueeze(3)
        return dy.expand(-1, -1, -1, ctx.size).flatten(2), None


class RPReLU(Function):
    @staticmethod
    def forward(ctx, x, shift_in, slope, shift_out, token_shift_in=None, token_shift_out=None):
        ctx.tokens = token_shift_in is not None
        if ctx.tokens:
            shift_in = shift_in + token_shift_in[:, None]  # (N, C)
            shift_out = shift_out + token_shift_out[:, None]
        u = x - shift_in
        ctx.save_for_backward(u, slope)
        return F.prelu(u.view(-1, u.shape[-1]), slope).view_as(u).add_(shift_out)

    @staticmethod
    def backward(ctx, dy):
        u, slope = ctx.saved_tensors
        positive = torch.gt(u, 0, out=torch.empty_like(u)).mul_(dy)
        du = torch.lerp(positive, dy, slope)
        dslope = torch.sub(dy, positive, out=positive).mul_(u).sum((0, 1))
        din, dout = -du.sum(0), dy.sum(0)  # (N, C)
        tokens = (din.sum(1), dout.sum(1)) if ctx.tokens else (None, None)
        return du, din.sum(0), dslope, dout.sum(0), *tokens


class BooleanProduct(Function):
    """alpha' * bits of prob, times the signs; probabilities are never below 0."""

    @staticmethod
    def forward(ctx, prob, signs, alpha):
        ctx.save_for_backward(prob, signs, alpha)
        step = alpha.clamp(min=SMALLEST)
        bits = torch.gt(prob, step / 2, out=torch.empty_like(prob))
        return (bits @ signs).mul_(step)

    @staticmethod
    def backward(ctx, dy):
        prob, signs, alpha = ctx.saved_tensors
        step = alpha.clamp(min=SMALLEST)
        bits = torch.gt(prob, step / 2, out=torch.empty_like(prob))
        dsigns = (bits.mT @ dy).mul_(step)
        dboolean = dy @ signs.mT
        dprob = torch.le(prob, step, out=torch.empty_like(prob)).mul_(dboolean)
        flat = dprob.view(-1)
        dalpha = dboolean.sum() - dprob.sum()  # where prob > alpha'
        dalpha += torch.dot(flat, bits.view(-1)) - torch.dot(flat, prob.view(-1)) / step
        return dprob, dsigns, dalpha * (alpha >= SMALLEST)


class Bands(Function):
    """[SPEC 4] Low and high band: mode "edge", the class token in both."""

    @staticmethod
    def forward(ctx, x, grid):
        ctx.grid, first = grid, x.shape[1] - math.prod(grid)
        grid_x = x[:, first:].unflatten(1, grid)  # (B, gh, gw, C)
        rows = grid_x * 0.25
        rows[:, :-1].add_(grid_x[:, 1:], alpha=0.25)
        rows[:, -1] *= 2
        low, high = torch.empty_like(x), torch.empty_like(x)
        band = low[:, first:].unflatten(1, grid)
        torch.add(rows[:, :, :-1], rows[:, :, 1:], out=band[:, :, :-1])
        torch.mul(rows[:, :, -1], 2, out=band[:, :, -1])
        torch.sub(x[:, first:], low[:, first:], out=high[:, first:])
        low[:, :first] = high[:, :first] = x[:, :first]
        return low, high

    @staticmethod
    def backward(ctx, dlow, dhigh):
        dx, first = dhigh.clone(), dhigh.shape[1] - math.prod(ctx.grid)
        dx[:, :first] += dlow[:, :first]
        dband = (dlow - dhigh)[:, first:].unflatten(1, ctx.grid) * 0.25
        columns = dband.clone()
        columns[:, :, 1:] += dband[:, :, :-1]
        columns[:, :, -1] += dband[:, :, -1]
        grid_dx = dx[:, first:].unflatten(1, ctx.grid)
        grid_dx += columns
        grid_dx[:, 1:] += columns[:, :-1]
        grid_dx[:, -1] += columns[:, -1]
        return dx, None


def square(x, grid):
    """Sums over 3 x 3 patches; the class token stays."""
    first = x.shape[1] - math.prod(grid)
    grid_x = x[:, first:].unflatten(1, grid)
    rows = grid_x.clone()
    rows[:, 1:] += grid_x[:, :-1]
    rows[:, :-1] += grid_x[:, 1:]
    y = torch.empty_like(x)
    y[:, :first] = x[:, :first]
    total = y[:, first:].unflatten(1, grid)
    total.copy_(rows)
    total[:, :, 1:] += rows[:, :, :-1]
    total[:, :, :-1] += rows[:, :, 1:]
    return y


@functools.cache
def shares(grid, tokens, dtype):
    """(1, N, 1): one over the number of neighbours, of the class token anything."""
    one = torch.ones(1, tokens, 1, dtype=dtype)
    return 1 / (square(one, grid) - one).clamp_(min=1)


class NeighbourMean(Function):
    """[SPEC 6.2] Over those that exist; 0 for the class token."""

    @staticmethod
    def forward(ctx, x, grid):
        ctx.grid = grid
        return square(x, grid).sub_(x).mul_(shares(grid, x.shape[1], x.dtype))

    @staticmethod
    def backward(ctx, dy):
        dtotal = dy * shares(ctx.grid, dy.shape[1], dy.dtype)
        return square(dtotal, ctx.grid).sub_(dtotal), None
