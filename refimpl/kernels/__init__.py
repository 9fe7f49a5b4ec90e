"""Numba kernels: bits and popcounts (`bits`, `popcount`), fused loops, and a `backend` for models.

`vector` is the small language they are written in. Each equals its NumPy twin in `refimpl.ops`.
"""
