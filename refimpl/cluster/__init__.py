"""Beyond one machine: evaluation and ablation on Dask, with the numbers of one machine.

    with refimpl.cluster.connected("local:2") as client:
        found = refimpl.cluster.evaluate(client, "didb_micro_mnist", "mnist")

`README.md` in this folder says how it works, what it costs and what to know before a large run.
Dask is the extra `cluster`: ConfigError where it is not installed.
"""

from refimpl.conventions import ConfigError

try:
    import distributed  # noqa: F401
except ModuleNotFoundError as error:
    raise ConfigError(
        f"a cluster needs Dask, which is not installed ({error}): pip install 'refimpl[cluster]'"
    ) from None

from refimpl.cluster.ablation import ablate
from refimpl.cluster.connection import connected
from refimpl.cluster.evaluation import Evaluated, evaluate

__all__ = ["Evaluated", "ablate", "connected", "evaluate"]
