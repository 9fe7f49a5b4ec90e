"""How fast we are beside what people would use instead, in one run and on the same threads.

`kernels` compares matrix products, `models` whole networks, `scaling` our own cost against tokens
and batch, `process` a fresh process. `measure` takes the times, `host` tells and sets what they
depend on, and `peers` holds one file for each of the others.
"""
