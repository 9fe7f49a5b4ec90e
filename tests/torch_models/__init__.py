"""The network once more, in PyTorch, written from the spec alone: the oracle of the tests.

Nothing here shares code with `refimpl`, and where two algorithms are natural it takes the other one
(a convolution for the Haar transform and the neighbour mean, autograd for everything but the
declared surrogate gradients). No other folder of the project imports torch.
"""
