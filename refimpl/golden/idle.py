"""Parameters that still are what a fresh network starts with, and what no bundle of them shows.

A move of 0 that a port leaves out, or adds where it subtracts, changes nothing; band weights that
are all 1/2 may be exchanged. So a bundle of such a network passes ports that are wrong [SPEC 6.6].
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from refimpl.models.nodes import Network

# What the roles of parameters that have a start are called.
NAMES = {
    "gain": "weights of norms",
    "bias": "biases",
    "move": "moves",
    "shift": "shifts of RPReLU",
    "token_shift": "token shifts of RPReLU",
    "slope": "slopes of RPReLU",
    "alpha": "alphas",
    "band_weight": "band weights",
    "shortcut": "lam_s",
    "neighbour": "lam_n",
    "layer_scale": "layer scales",
    "running_mean": "running means",
    "running_variance": "running variances",
}


def kinds(network: Network, params: Mapping[str, np.ndarray]) -> list[str]:
    """List the kinds of parameters, flat by path, of which every entry is at its start."""
    idle = {parameter.role: True for parameter in network.parameters.values()}
    for path, parameter in network.parameters.items():
        idle[parameter.role] &= bool(np.all(params[path] == parameter.start))
    return [f"{name} ({_starts(network, role)})" for role, name in NAMES.items() if idle.get(role)]


def warning(network: Network, params: Mapping[str, np.ndarray]) -> str:
    """Say in one line which parameters, flat by path, show nothing; "" where there are none."""
    found = kinds(network, params)
    if not found:
        return ""
    return (
        f"as a fresh network has them are {', '.join(found)}: a bundle cannot show whether a port "
        "leaves these out, has them with the wrong sign or reads them from the wrong place"
    )


def _starts(network: Network, role: str) -> str:
    starts = {f"{p.start:.3g}": None for p in network.parameters.values() if p.role == role}
    return ", ".join(starts)
