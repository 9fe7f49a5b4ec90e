"""Training by the model's own backward pass [SPEC 7]: no autograd, NumPy only.

- recipes: every setting of a run, in one frozen dataclass, from a file or by hand
- holdout: images to choose the settings on
- schedules: the learning rate as a pure function of the step
- augmentation: random flips and shifts of uint8 images
- starts: a trained network to start from, with a new head where the classes are others
- stages: binary activations with real weights first, then everything binary
- optimizers: AdamW, Muon, and clipping by global norm
- losses, teachers: labels, and a trained model that helps to tell them
- batches: loss and gradients of a batch, in parts side by side
- checkpoints, journal: all that a run needs to go on to the same bits, written atomically
- history: what an epoch brought
- requirements: model, recipe and data fit together, checked before the first step
- watch, processor: who looks on, and the kind of CPU that a run had
- loop: puts them together in `train(model, recipe, images, labels, ...)`
- ablation, ablation_table: many runs of it on the same images, and what they say together
"""

from refimpl.training.history import EpochResult
from refimpl.training.holdout import Split, hold_out
from refimpl.training.loop import Trained, train
from refimpl.training.recipes import Recipe

__all__ = ["EpochResult", "Recipe", "Split", "Trained", "hold_out", "train"]
