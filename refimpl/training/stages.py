"""The stages of a run [SPEC 7]: `binarize="activations"` first, its result starts `"full"`.

In the first stage signs and booleans are in place, but the weights are real: the network learns to
live with binary activations before its weights lose their magnitudes. Each stage has a schedule
and an optimizer of its own; only the parameters go over.
"""

from typing import NamedTuple

from refimpl.conventions import ConfigError
from refimpl.models import VisionTransformer
from refimpl.training.recipes import Recipe


class Stage(NamedTuple):
    """Some epochs of a run with one way of binarizing."""

    name: str  # the value of `binarize`, or "real"
    model: VisionTransformer
    first: int  # epochs of the run before it
    epochs: int

    @property
    def last(self) -> int:
        """Epochs of the run when it is over."""
        return self.first + self.epochs


def plan(model: VisionTransformer, recipe: Recipe, fresh: bool = True) -> list[Stage]:
    """The stages that train `model`; the last one is the model as it is.

    fresh: it starts from drawn parameters. ConfigError where the recipe asks for a stage before it
    that the model cannot have, and for fresh batch norms: they have no training mode here, and the
    running statistics, frozen, must be those of a trained network [SPEC 6.8].
    """
    if fresh and model.config.norm == "batch":
        raise ConfigError(
            "norm is 'batch', whose running statistics no step moves; expected 'layer' to train, "
            "or a trained network to start from"
        )
    real = model.config.block == "real"
    name = "real" if real else model.config.binarize
    before = recipe.activation_epochs
    if before == 0:
        return [Stage(name, model, 0, recipe.epochs)]
    if name != "full":
        raise ConfigError(
            f"recipe: activation_epochs is {before}, expected 0: they come before the stage "
            f"'full' of a binary model, this model is {name!r}"
        )
    first = model.replace(binarize="activations")
    return [Stage("activations", first, 0, before), Stage(name, model, before, recipe.epochs)]
