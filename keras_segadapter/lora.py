"""LoRA: layers of a backbone that learn a product of two small matrices."""

import re

import keras
from keras import ops

from keras_segadapter.graph.replay import as_functional, record
from keras_segadapter.lora_state import let_learn, listed, lora_layers
from keras_segadapter.validation import check_integer, check_positive, is_segmenter

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
            f"are {listed(able) if able else 'none'}. Received: pattern={pattern!r}"
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
        elif getattr(layer, "quantization_mode", None):
            fault = "is quantized"
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
    let_learn(functional, {id(layer): ("a", "b") for layer in lora})
    if is_segmenter(model):
        # On TensorFlow, functions traced before would go on without LoRA.
        for each in (model, model.scorer, model.for_inference()):
            each.make_predict_function(force=True)
    print(
        f"LoRA of rank {rank} is enabled in {len(matched)} layers of "
        f"'{backbone.name}', whose other weights are frozen: {listed(matched)}."
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
    """Return whether a call's outputs change where LoRA adds something to a kernel."""

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
        f"lora_{name}_a": keras.random.normal((*shape[:-1], 1), seed=1),
        f"lora_{name}_b": keras.random.normal((1, shape[-1]), seed=2),
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
