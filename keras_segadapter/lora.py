"""LoRA: layers of a backbone that learn a product of two small matrices."""

import contextlib
import functools
import re

import keras
from keras import ops

from keras_segadapter.graph.inside import layers_inside
from keras_segadapter.graph.replay import as_functional
from keras_segadapter.validation import (
    check_integer,
    check_positive,
    is_segmenter,
    list_names,
)

# What a file holds of a layer; HDF5 would make groups of "/" in names.
_PARTS = ("kernel", "a", "b")


def enable_lora(model, pattern, rank, alpha=None):
    """Enable LoRA in the layers of a backbone whose path matches a pattern.

    Each of these layers then computes with `kernel + alpha / rank * a @ b`, by Keras'
    own `enable_lora`. All other weights of the backbone are frozen, biases and norms
    included, as KerasHub does; adapters, neck and head of a `Segmenter` learn as
    before. `b` starts at zero, so the outputs are the same at first. Compile the model
    afterwards. `model.backbone.get_layer(name).trainable = True` lets another layer
    learn too, and `model.backbone.trainable = False` freezes LoRA as well.

    Files that Keras saves hold the merged kernels, so that they load into a model
    without LoRA. Those of a `Segmenter` hold the factors and the frozen kernels too,
    and its `fit` goes on where it was; of other models Keras loads factors of zero,
    which never learn. Exported files hold the merged kernels alone.

    The path of a layer is made of the names of layers in models, and of the attributes
    of layers inside layers without leading underscores, such as
    "stage1_block1_attention/query" in a MiT. Models that share the backbone share LoRA.

    Args:
        model: A `Segmenter`, or its backbone before it is built.
        pattern: String. Regular expression that is searched for in the paths. Layers
            without `enable_lora`, such as norms, are passed by.
        rank: Integer of at least 1. Rank of the factors.
        alpha: Number above 0. The product is multiplied by `alpha / rank`. Defaults to
            `rank`.

    Returns:
        List of the paths of the layers, which a printed line names too.

    Raises:
        TypeError: If `model` is neither a `Segmenter` nor a functional or Sequential
            model, or `pattern` is not a string.
        ValueError: If `pattern` is no regular expression, if `rank` or `alpha` is not
            positive, if no layer that can do LoRA matches, or if one has LoRA already,
            constrains or quantizes its kernel or does not compute with it.

    Example:

    ```python
    import keras_segadapter as ksa

    model = ksa.AdaptMiTB0(num_classes=19)
    paths = ksa.enable_lora(model, r"attention/(query|value)", rank=4)
    model.compile()
    print(len(paths))  # 16
    ```

    Source: E. Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022.
    """
    rank = check_integer("rank", rank)
    alpha = rank if alpha is None else check_positive("alpha", alpha)
    search = _compiled(pattern).search
    backbone = model.backbone if is_segmenter(model) else model
    functional = as_functional(backbone)
    # Those behind the last stage are no part of a segmenter.
    inside = {id(weight) for weight in model.weights}
    able = {
        path: layer
        for path, layer in lora_layers(functional)
        if inside.intersection(map(id, layer.weights))
    }
    matched = {path: layer for path, layer in able.items() if search(path)}
    if not matched:
        raise ValueError(
            "`pattern` must match the path of a layer with a method `enable_lora`, as "
            f"Dense, EinsumDense and Conv2D have. Those of '{model.name}' are "
            f"{list_names(able)}. Received: pattern={pattern!r}"
        )
    for path, layer in matched.items():
        if layer.lora_enabled or layer.kernel_constraint:
            fault = "LoRA already" if layer.lora_enabled else "a `kernel_constraint`"
            raise ValueError(
                "LoRA can't be enabled in all layers that match. Choose a `pattern` "
                f"that leaves this one out. Received: pattern={pattern!r}, and the "
                f"layer '{path}' ({type(layer).__name__}) has {fault}"
            )
    for layer in matched.values():
        layer.enable_lora(rank, lora_alpha=alpha)
    factors = [w for _, layer in lora_layers(functional) for w in _factors(layer)]
    backbone.trainable = True  # so that setting it to False is a change
    _let_learn(functional, factors)
    if is_segmenter(model):
        # On TensorFlow, functions traced before would go on without LoRA.
        for each in (model, model.scorer, model.for_inference()):
            each.make_predict_function(force=True)
    print(
        f"LoRA of rank {rank} is enabled in {len(matched)} layers of "
        f"'{backbone.name}', whose other weights are frozen: {list_names(matched)}."
    )
    return [*matched]


def _compiled(pattern):
    """Return a regular expression, validated and compiled."""
    try:
        return re.compile(pattern)
    except (re.error, TypeError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(
            "`pattern` must be a regular expression, which is searched for in paths "
            "such as 'stage1_block1_attention/query'. Received: "
            f"pattern={pattern!r}, {error}"
        ) from error


def lora_layers(model):
    """Return pairs of the paths and the layers in a model whose kernels take LoRA."""
    return [
        (path, layer)
        for path, layer in layers_inside(model)
        if hasattr(layer, "lora_enabled") and hasattr(layer, "kernel")
    ]


def _factors(layer):
    return [layer.lora_kernel_a, layer.lora_kernel_b] if layer.lora_enabled else []


def _kernel(layer):
    """Return the variable behind the property `kernel`, which adds the product."""
    return next(weight for weight in layer.weights if weight.name == "kernel")


def _let_learn(model, weights):
    """Let these weights of a model learn, and freeze all its others."""
    chosen = {id(weight) for weight in weights}
    for _, layer in layers_inside(model):
        if not isinstance(layer, keras.Model):
            learns = any(id(weight) in chosen for weight in layer.weights)
            # On TensorFlow, Keras hands down nothing but a change.
            layer.trainable = not learns
            layer.trainable = learns
    for weight in model.weights:
        weight.trainable = id(weight) in chosen


def lora_settings(model):
    """Return what `restore_lora` takes to set up LoRA in another model as in this one.

    Returns:
        Dict of "layers", pairs of rank and alpha by path, and "learning", the indices
        of the model's trainable weights; or an empty dict without LoRA.
    """
    found = {
        path: [layer.lora_rank, layer.lora_alpha]
        for path, layer in lora_layers(model)
        if layer.lora_enabled
    }
    learning = [index for index, w in enumerate(model.weights) if w.trainable]
    return {"layers": found, "learning": learning} if found else {}


def restore_lora(model, settings):
    """Enable LoRA, where it is not yet enabled, and freeze what was frozen beside it.

    The configs of some backbones do not say which of their layers are frozen.

    Args:
        model: A functional or Sequential model.
        settings: Dict, as `lora_settings` returned it.

    Raises:
        ValueError: If the model lacks one of the layers.
    """
    if not settings:
        return
    layers = dict(lora_layers(model))
    missing = [path for path in settings["layers"] if path not in layers]
    if missing:
        raise ValueError(
            "The backbone must have the layers that have LoRA in the config. Was it "
            "edited, or written by another version? Received: a config with LoRA in "
            f"{list_names(missing)}"
        )
    for path, (rank, alpha) in settings["layers"].items():
        if not layers[path].lora_enabled:
            layers[path].enable_lora(rank)
        layers[path].lora_alpha = alpha  # Keras' Dense builds itself without it.
    _let_learn(model, [model.weights[index] for index in settings["learning"]])


@contextlib.contextmanager
def lora_merged(model):
    """Merge LoRA into the kernels for a while, so that graphs are traced without it."""
    layers = [layer for _, layer in lora_layers(model) if layer.lora_enabled]
    kept = [ops.convert_to_numpy(_kernel(layer)) for layer in layers]
    for layer in layers:
        _kernel(layer).assign(layer.kernel)
        layer.lora_enabled = False
    try:
        yield
    finally:
        for layer, kernel in zip(layers, kept, strict=True):
            _kernel(layer).assign(kernel)
            layer.lora_enabled = True


class LoraState(keras.Layer):
    """The factors and frozen kernels of a model, as its files hold them.

    Keras saves the merged kernels alone, and sets both factors to zero when it loads:
    they would never learn again. An attribute of a functional model, this layer is
    loaded after the model's own layers. It has no weights itself.

    Args:
        model: The functional model whose layers have LoRA.
    """

    def __init__(self, model):
        super().__init__(name="lora_state")
        # The model itself would be tracked as a part of this layer.
        self._layers_of_model = functools.partial(lora_layers, model)

    def _states(self):
        """Yield the path, kernel and factors of each layer with LoRA."""
        for path, layer in self._layers_of_model():
            if layer.lora_enabled:
                yield path.replace("/", ":"), [_kernel(layer), *_factors(layer)]

    def save_own_variables(self, store):
        for path, weights in self._states():
            for part, weight in zip(_PARTS, weights, strict=True):
                store[f"{path}:{part}"] = weight

    def load_own_variables(self, store):
        for path, weights in self._states():
            if f"{path}:a" not in store.keys():  # a file without LoRA
                weights[1].assign(keras.initializers.HeUniform()(weights[1].shape))
                continue
            rank, expected = store[f"{path}:b"].shape[0], weights[2].shape[0]
            if rank != expected:
                raise ValueError(
                    "LoRA must have the rank that it has in the file; a model without "
                    f"LoRA loads any. Received: rank={expected} in the layer "
                    f"'{path.replace(':', '/')}', and {rank} in the file"
                )
            for part, weight in zip(_PARTS, weights, strict=True):
                weight.assign(store[f"{path}:{part}"])
