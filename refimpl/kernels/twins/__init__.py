"""Fused twins of operations, for training: `refimpl.kernels.backend` offers them to the models.

One operation a file, with the name, the arguments and the results of its original in
`refimpl.ops`: forward and its kernel, backward and its kernel. A twin takes what its kernel can
(`rows.fits`) and leaves all else, errors too, to the original. It does the additions of the
original in the same order, so that its values are equal to the bit; only gelu's are not, in
float32, where they are nearer to the truth. `projection` is the twin of a whole unit of the models.
"""
