"""Maps that show what a model makes of images, stage by stage."""

import numpy as np
from keras import layers, ops

from keras_segadapter.graph.stages import stage_keys
from keras_segadapter.inference.rows import fitted, has_fixed_size
from keras_segadapter.inference.threads import InferenceModel
from keras_segadapter.layers import ResizeLike


class Views:
    """A function from images to the maps of a `Segmenter`, by title.

    Maps of class ids are "prediction" and, of a model with adapters, "coarse map"
    (argmax of the auxiliary output, with `aux="sum"`) and the side output of each
    stage (argmax of its adapter's scores S), such as "side s4". Maps of features are
    the means of their absolute values over the channels, before the adapter ("X s4")
    and behind it ("Y s4"). Each map has the size of the images, and shows the pixels
    of its stage.

    Args:
        model: A `Segmenter`.

    Attributes:
        titles: List of the titles, in the order of the stages.
    """

    def __init__(self, model):
        self.model = model
        self._maps = InferenceModel(model.input, _maps(model))
        self.titles = list(self._maps.output)

    def __call__(self, images):
        """Return the maps of class ids, and those of features.

        Args:
            images: Images `(N, H, W, C)` as the model takes them.

        Returns:
            Two dicts of arrays `(N, H, W)` by title.
        """
        inputs = fitted(self.model, images)  # (N, h, w, C)
        covered = (images if has_fixed_size(self.model) else inputs).shape[1:3]
        # One at a time, since logits are large. On torch, `predict` would draw a random
        # number for its DataLoader.
        seen = [self._maps.predict_on_batch(image[None]) for image in inputs]
        ids, features = {}, {}
        for title in self.titles:  # JAX returns them in another order.
            maps = np.concatenate([views[title] for views in seen])  # (N, h, w)
            # The nearest pixel of the maps for each pixel of the images.
            rows, columns = (
                np.arange(side) * length // whole
                for side, length, whole in zip(
                    images.shape[1:3], maps.shape[1:], covered, strict=True
                )
            )
            kind = features if title[0] in "XY" else ids
            kind[title] = maps[:, rows[:, None], columns]  # (N, H, W)
        return ids, features


def heat(values):
    """Paint values `(H, W)` from their least to their largest one, as uint8 RGB."""
    # The import takes long, and few need it.
    from matplotlib.cm import ScalarMappable

    values = np.where(np.isfinite(values), values, 0)  # A training may have diverged.
    return ScalarMappable(cmap="inferno").to_rgba(values, bytes=True)[..., :3]


def _maps(model):
    """Return what is shown, as symbolic tensors `(B, h, w)` by title."""
    keys = stage_keys(model.stages)
    maps = {}

    def add(title, function, tensors):
        # Operations without a layer's name could clash with those of a graph that was
        # loaded from a file.
        name = f"view_{title}".replace(" ", "_")
        maps[title] = layers.Lambda(function, dtype="float32", name=name)(tensors)

    def labels(scores):
        return ops.argmax(scores, axis=-1)  # (B, h, w)

    def sizes(features):
        return ops.mean(ops.abs(features), axis=-1)  # (B, h, w)

    add("prediction", labels, model.for_inference().output)
    if "aux" in model.output:
        resize = ResizeLike(dtype="float32", name="view_resize")
        add("coarse map", labels, resize([model.output["aux"], *model.inputs]))
    scoring = [
        key
        for key, adapter in zip(keys, model.adapters, strict=False)  # or no adapters
        if adapter.return_scores
    ]
    for key, scores in zip(scoring, model.features["scores"], strict=True):
        add(f"side {key}", labels, scores)
    for index, key in enumerate(keys):
        add(f"X {key}", sizes, model.features["inputs"][index])
        if model.adapters:
            add(f"Y {key}", sizes, model.features["outputs"][index])
    return maps
