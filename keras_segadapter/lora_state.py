"""The state of LoRA in a model: which layers have it, what learns, what files hold."""

import contextlib
import functools

import keras
from keras import ops

from keras_segadapter.graph.inside import layers_inside, parts_of

_LISTED = 4  # paths in one message


def lora_layers(model):
    """Return pairs of the paths and the layers in a model that can have LoRA."""
    found = layers_inside(model)
    return [(path, layer) for path, layer in found if hasattr(layer, "lora_enabled")]


def lora_settings(model):
    """Return what `restore_lora` takes to set up LoRA in another model as in this one.

    Returns:
        Dict of "layers", rank, alpha and the names of trainable weights of each layer
        with LoRA by its path, and "learning", the paths of the layers of the graph that
        are not frozen; or an empty dict without LoRA.
    """
    settings = {
        path: {
            "rank": layer.lora_rank,
            "alpha": layer.lora_alpha,
            "trainable": [name for name, w in _weights(layer).items() if w.trainable],
        }
        for path, layer in lora_layers(model)
        if layer.lora_enabled
    }
    learning = [path for path, layer in _graph_layers(model) if layer.trainable]
    return {"layers": settings, "learning": learning} if settings else {}


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
    layers, lora = dict(lora_layers(model)), {}
    missing = [path for path in settings["layers"] if path not in layers]
    if missing:
        raise ValueError(
            "The backbone must have the layers that have LoRA in the config. Was it "
            "edited, or written by another version? Received: a config with LoRA in "
            f"{listed(missing)}"
        )
    for path, given in settings["layers"].items():
        layer = layers[path]
        if not layer.lora_enabled:
            layer.enable_lora(given["rank"], lora_alpha=given["alpha"])
        layer.lora_alpha = given["alpha"]  # Keras' Dense builds itself without it.
        lora[id(layer)] = given["trainable"]
    let_learn(model, lora, settings["learning"])


def _graph_layers(model, prefix=""):
    """Yield paths and layers of a model, with those of nested models in their place."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _graph_layers(layer, f"{prefix}{layer.name}/")
        else:
            yield f"{prefix}{layer.name}", layer


def let_learn(model, lora, learning=None):
    """Freeze the layers of a graph but for some, and in these all but LoRA.

    Args:
        model: A model.
        lora: Dict from the ids of layers with LoRA to the names of weights that learn.
        learning: List of the paths of layers that learn. Those without LoRA inside
            learn wholly. Defaults to None: those with LoRA inside.
    """
    for path, layer in _graph_layers(model):
        if learning is None or path in learning:
            _let_layer_learn(layer, lora, learning is not None, set())
        else:
            _set_trainable(layer, False)


def _let_layer_learn(layer, lora, otherwise, seen):
    """Let LoRA inside a layer learn; set a layer without LoRA to `otherwise`."""
    if id(layer) in seen:
        return
    seen.add(id(layer))
    holds = any(id(inner) in lora for _, inner in lora_layers(layer))
    _set_trainable(layer, holds or otherwise)
    if not holds:
        return
    for weight in layer.weights:
        weight.trainable = False
    for name in lora.get(id(layer), ()):
        _weights(layer)[name].trainable = True
    for _, inner in parts_of(layer):
        _let_layer_learn(inner, lora, False, seen)


def _set_trainable(layer, value):
    layer.trainable = not value  # On TensorFlow, Keras hands down nothing but a change.
    layer.trainable = value


@contextlib.contextmanager
def lora_merged(model):
    """Merge LoRA into the kernels for a while, so that graphs are traced without it."""
    layers = [layer for _, layer in lora_layers(model) if layer.lora_enabled]
    kept = []
    for layer in layers:
        kernel, a, b = (_weights(layer)[name] for name in ("kernel", "a", "b"))
        kept.append((kernel, ops.convert_to_numpy(kernel)))
        kernel.assign(kernel + layer.lora_alpha / layer.lora_rank * ops.matmul(a, b))
        layer.lora_enabled = False
    try:
        yield
    finally:
        for layer, (kernel, value) in zip(layers, kept, strict=True):
            kernel.assign(value)
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

    def save_own_variables(self, store):
        for path, layer in self._layers_of_model():
            for name, weight in _weights(layer).items() if layer.lora_enabled else ():
                store[_key(path, name)] = weight

    def load_own_variables(self, store):
        for path, layer in self._layers_of_model():
            if not layer.lora_enabled:
                continue  # Keras has loaded the merged kernel.
            weights = _weights(layer)
            if _key(path, "a") not in store.keys():  # a file without LoRA
                fresh = keras.initializers.HeUniform()(weights["a"].shape)
                weights["a"].assign(fresh)
                continue
            rank = store[_key(path, "b")].shape[0]
            if rank != layer.lora_rank:
                raise ValueError(
                    "LoRA must have the rank that it has in the file; a model without "
                    f"LoRA loads any. Received: rank={layer.lora_rank} in the layer "
                    f"'{path}', and {rank} in the file"
                )
            for name, weight in weights.items():
                weight.assign(store[_key(path, name)])


def _key(path, name):
    return f"{path}/{name}".replace("/", ":")  # HDF5 would make groups of "/".


def _weights(layer):
    """Return the weights of a layer with LoRA: "kernel", "a", "b", and its "bias"."""
    names = {"lora_kernel_a": "a", "lora_kernel_b": "b", "lora_embeddings_a": "a"}
    names.update(lora_embeddings_b="b", embeddings="kernel")
    return {names.get(weight.name, weight.name): weight for weight in layer.weights}


def listed(paths):
    """Return the first paths of a list as text."""
    first, more = [*paths][:_LISTED], len(paths) - _LISTED
    return ", ".join(first + [f"and {more} more"] * (more > 0))
