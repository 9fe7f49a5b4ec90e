"""stub"""


def ablate(): ...
