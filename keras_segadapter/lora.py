"""LoRA: layers of a backbone that learn a product of two small matrices."""

import contextlib
import functools
import re

import keras
from keras import ops

from keras_segadapter.graph.replay import as_functional, record
from keras_segadapter.validation import check_integer, check_positive, is_segmenter

_LISTED = 4  # paths in one message
_SIDE = 32  # length of open sides of features on which layers are tried


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
            constrains its kernel or does not compute with it.

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
    inside = {*map(id, model.weights)}
    able, matched = {}, {}
    for path, layer in lora_layers(functional):
        # Those behind the last stage are no part of a segmenter.
        if inside.intersection(map(id, layer.weights)):
            able[path] = layer
            if search(path):
                matched[path] = layer
    if not matched:
        raise ValueError(
            "`pattern` must match the path of a layer with a method `enable_lora`, as "
            f"Dense, EinsumDense, Conv2D and Embedding have. Those of '{model.name}' "
            f"are {_listed(able) if able else 'none'}. Received: pattern={pattern!r}"
        )
    users, tried = {}, {}
    for call in record(functional).calls:
        for _, layer in lora_layers(call.operation):
            users.setdefault(id(layer), []).append(call)
    for path, layer in matched.items():
        fault = None
        if layer.lora_enabled:
            fault = "has LoRA already"
        elif getattr(layer, "kernel_constraint", None):
            fault = "has a `kernel_constraint`"
        elif not _computes_with_kernel(path, layer, users.get(id(layer), ()), tried):
            fault = "is not called, or not with the property `kernel`"
        if fault:
            raise ValueError(
                "LoRA can't be enabled in all layers that match. Choose a `pattern` "
                f"that leaves this one out. Received: pattern={pattern!r}, and the "
                f"layer '{path}' ({type(layer).__name__}) {fault}"
            )
    for layer in matched.values():
        layer.enable_lora(rank, lora_alpha=alpha)
    backbone.trainable = True  # so that setting it to False is a change
    lora = [layer for _, layer in lora_layers(functional) if layer.lora_enabled]
    _let_learn(functional, {id(layer): ("a", "b") for layer in lora})
    if is_segmenter(model):
        # On TensorFlow, functions traced before would go on without LoRA.
        for each in (model, model.scorer, model.for_inference()):
            each.make_predict_function(force=True)
    print(
        f"LoRA of rank {rank} is enabled in {len(matched)} layers of "
        f"'{backbone.name}', whose other weights are frozen: {_listed(matched)}."
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
    """Return pairs of the paths and the layers in a model that have `enable_lora`.

    Inner layers are found at any depth.
    """
    found, seen = [], set()

    def walk(path, layer):
        if id(layer) not in seen:
            seen.add(id(layer))
            if hasattr(layer, "lora_enabled"):
                found.append((path, layer))
            for name, inner in _parts_of(layer):
                walk(f"{path}/{name}".lstrip("/"), inner)

    walk("", model)
    return found


def _parts_of(layer):
    """Return pairs of the names and the layers in a model or in a layer."""
    if isinstance(layer, keras.Model):
        return [(inner.name, inner) for inner in layer.layers]
    # By `dir`, as PyTorch keeps layers elsewhere than in `vars`.
    own = sorted({*dir(layer)} - {*dir(type(layer))} - _attributes_of_all())
    parts = []
    for name in own:
        part = getattr(layer, name)
        several = isinstance(part, (list, tuple, dict))
        for index, inner in enumerate(keras.tree.flatten(part)):
            if isinstance(inner, keras.Layer):
                number = f"/{index}" if several else ""
                parts.append((f"{name.strip('_')}{number}", inner))
    return parts


@functools.cache
def _attributes_of_all():
    """Return the names of the attributes that Keras and the backend add to a layer."""
    plain = keras.Layer(name="plain")
    plain.part_of_plain = keras.Layer(name="part")  # TensorFlow then adds some.
    return {*dir(plain)}


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
            f"{_listed(missing)}"
        )
    for path, given in settings["layers"].items():
        layer = layers[path]
        if not layer.lora_enabled:
            layer.enable_lora(given["rank"], lora_alpha=given["alpha"])
        layer.lora_alpha = given["alpha"]  # Keras' Dense builds itself without it.
        lora[id(layer)] = given["trainable"]
    _let_learn(model, lora, settings["learning"])


def _graph_layers(model, prefix=""):
    """Yield paths and layers of a model, with those of nested models in their place."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _graph_layers(layer, f"{prefix}{layer.name}/")
        else:
            yield f"{prefix}{layer.name}", layer


def _let_learn(model, lora, learning=None):
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
    inside = {id(w) for _, inner in _parts_of(layer) for w in inner.weights}
    for name, weight in _weights(layer).items():
        if id(weight) not in inside:  # its own
            weight.trainable = name in lora.get(id(layer), ())
    for _, inner in _parts_of(layer):
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


def _computes_with_kernel(path, layer, calls, tried):
    """Return whether a layer's outputs change with what its property `kernel` returns.

    Layers of the same class in calls of the same class are tried once.
    """
    for call in calls:
        key = type(call.operation), type(layer), path.split("/")[-1]
        if key not in tried:
            tried[key] = _changes_with_kernel(call, layer)
        if tried[key]:
            return True
    return False


def _changes_with_kernel(call, layer):
    """Return whether a call's outputs change where LoRA adds 1 to a kernel."""

    def features(value):
        if not isinstance(value, keras.KerasTensor):
            return value
        batch, *sides = value.shape
        shape = (batch or 1, *(side or _SIDE for side in sides))
        if "float" not in value.dtype:
            return ops.zeros(shape, value.dtype)
        return keras.random.normal(shape, dtype=value.dtype, seed=0)

    args, kwargs = keras.tree.map_structure(features, (call.args, call.kwargs))

    def run():
        outputs = keras.tree.flatten(call.operation(*args, **kwargs))
        return [ops.convert_to_numpy(output) for output in outputs]

    name = "embeddings" if hasattr(layer, "embeddings") else "kernel"
    shape = getattr(layer, name).shape
    trial = {
        f"lora_{name}_a": ops.ones((*shape[:-1], 1)),
        f"lora_{name}_b": ops.ones((1, shape[-1])),
        "lora_enabled": True,
        "lora_rank": 1,
        "lora_alpha": 1,
    }
    old = {key: getattr(layer, key) for key in trial if hasattr(layer, key)}
    try:
        before = run()
        for key, value in trial.items():
            setattr(layer, key, value)
        after = run()
    except Exception:  # of any kind: a foreign `call` that needs other sizes
        return True
    finally:
        for key in trial:
            if key in old:
                setattr(layer, key, old[key])
            elif hasattr(layer, key):
                delattr(layer, key)
    pairs = zip(before, after, strict=True)
    return any((one != other).any() for one, other in pairs)


def _listed(paths):
    """Return the first paths of a list as text."""
    first, more = [*paths][:_LISTED], len(paths) - _LISTED
    return ", ".join(first + [f"and {more} more"] * (more > 0))
