"""Fine-tuning [SPEC 7]: a run starts from a trained network, with a new head for new classes."""

from collections.abc import Sequence

import numpy as np

from refimpl.data.class_names import same
from refimpl.models import VisionTransformer
from refimpl.models.params import Params, flatten, shapes, unflatten


def start(
    model: VisionTransformer, params: Params, class_names: Sequence[str], seed: int
) -> tuple[VisionTransformer, Params]:
    """Give (model, params) from which training on images of `class_names` starts.

    With the classes that `model` names already they are `model` and `params` themselves. Otherwise
    the parameters that speak of classes, those whose shape depends on their number, are drawn anew
    by `seed`, and all others stay.
    """
    names = tuple(class_names)
    if model.class_names is not None and same(model.class_names, names):
        return model, params
    # one less: there may be as many as a network can have
    others = shapes(model.config.replace(num_classes=model.config.num_classes - 1 or 2))
    kept = flatten(params)
    dtype = next(iter(kept.values())).dtype
    adapted = model.replace(num_classes=len(names))
    adapted = VisionTransformer(adapted.config, adapted.preprocessing, names)
    drawn = flatten(adapted.init(np.random.default_rng(seed), dtype))
    speak_of_classes = {path for path, shape in others.items() if kept[path].shape != shape}
    return adapted, unflatten(
        {path: drawn[path] if path in speak_of_classes else kept[path] for path in drawn}
    )
