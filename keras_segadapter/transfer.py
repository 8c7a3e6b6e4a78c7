"""Transfer of a trained segmenter: to a model with adapters, or to other classes."""

import inspect

import keras
import numpy as np
from keras import ops

from keras_segadapter.graph.adapters import default_adapters
from keras_segadapter.graph.replay import as_functional
from keras_segadapter.segmenter import Segmenter
from keras_segadapter.validation import (
    check_names_and_colors,
    check_num_classes,
    check_number,
    check_segmenter,
    is_auto,
    list_names,
)
from keras_segadapter.visualization import palette


def add_adapters(model, adapters=True, *, scale_init=0.0, aux="auto", name=None):
    """Put adapters into a segmenter that was trained without them.

    The new model has the layers of the old one, weights included: backbone, neck, head,
    preprocessing and an auxiliary layer are shared and not copied, so training one
    model changes the other. With `scale_init=0` it starts with the old model's logits
    exactly. In its first step the adapters then learn `mu` and, from the auxiliary
    loss, their classifiers and the norms in front; from the second step on all of their
    weights. To train them beside what was learned before, set
    `model.backbone.trainable = False`, and `model.head.trainable = False` too if you
    like, before `compile`.

    Args:
        model: A `Segmenter` without adapters.
        adapters: True for one `SegAdapter` per stage, as in `Segmenter`, or a list of
            them, shallow to deep. Defaults to `True`.
        scale_init: Number. Initial value of `mu` in the adapters of `adapters=True`:
            0 for the same logits, 1e-5 for logits close to them. Defaults to `0.0`.
        aux: What the auxiliary loss supervises, as in `Segmenter`; `"auto"` for what
            `model` was built with, or `"sum"` if that is nothing. Defaults to `"auto"`.
        name: String. Name of the new model. Defaults to the name of `model`.

    Returns:
        A `Segmenter`, not compiled.

    Raises:
        TypeError: If `model` is not a `Segmenter`, or if `adapters` is of the wrong
            kind.
        ValueError: If `model` has adapters, if those of the list do not fit, or if
            `scale_init` is not a finite number or is given with a list.

    Example:

    ```python
    import keras
    import keras_segadapter as ksa

    backbone = keras.Sequential(
        [keras.Input((None, None, 3)), keras.layers.Conv2D(8, 4, 4)]
    )
    trained = ksa.build_segmenter(backbone, num_classes=3, adapters=False)
    model = ksa.add_adapters(trained)
    model.backbone.trainable = False
    model.compile()
    print(len(model.adapters))  # 1
    ```
    """
    check_segmenter(model, "add_adapters")
    if model.adapters:
        raise ValueError(
            "`model` has adapters already. For others in their place, build a new "
            "model: keras_segadapter.Segmenter(model.backbone, model.num_classes, "
            f"adapters=[...]). Received: model='{model.name}' with the adapters "
            f"{[adapter.name for adapter in model.adapters]}"
        )
    scale_init = check_number("scale_init", scale_init)
    if adapters is True:
        adapters = default_adapters(
            as_functional(model.backbone),
            model.stages,
            model.num_classes,
            [
                {"scale_init": scale_init, "dtype": _policy_of(features)}
                for features in model.features["inputs"]
            ],
        )
    elif not isinstance(adapters, (list, tuple)):
        raise TypeError(
            "`adapters` must be True or a list of SegAdapter. Received: "
            f"adapters={adapters!r}"
        )
    elif scale_init:
        raise ValueError(
            "`scale_init` is for the adapters of adapters=True. Give it to each "
            f"SegAdapter of the list instead. Received: scale_init={scale_init}"
        )
    if is_auto(aux):
        aux = "sum" if model.aux is None else model.aux
    return _like(model, adapters=adapters, aux=aux, name=name or model.name)


def change_classes(model, class_names, colors=None, *, name=None):
    """Return a segmenter for other classes that keeps what `model` has learned.

    A class that has the same name in both models keeps its weights: its column of the
    classifiers in the head, the adapters and an auxiliary layer, and its row in what
    reads the adapters' scores. A new class starts at random there. All other weights
    are kept. A line is printed that says which classes were carried over.

    Backbone, neck and preprocessing are shared with `model` and not copied, so training
    the new model changes them in both, unless they are frozen. Head, adapters and an
    auxiliary layer are new layers: they are built from their configs, which must have
    `num_classes`.

    Args:
        model: A `Segmenter` with class names.
        class_names: List of at least 2 strings that differ; or an integer of at least
            2, for as many new classes without names.
        colors: RGB colors of the new list of classes, uint8 `(K, 3)`. Defaults to None:
            where `model` has colors, a class carried over keeps its own and a new one
            gets a color of `visualization.palette` that is free.
        name: String. Name of the new model. Defaults to the name of `model`.

    Returns:
        A `Segmenter`, not compiled.

    Raises:
        TypeError: If `model` is not a `Segmenter`, or if `class_names` is of the wrong
            kind.
        ValueError: If `model` has no class names, if names are equal, if colors do not
            fit, or if the head, an adapter or an auxiliary layer can't be built for
            another number of classes.

    Example:

    ```python
    import keras
    import keras_segadapter as ksa

    backbone = keras.Sequential(
        [keras.Input((None, None, 3)), keras.layers.Conv2D(8, 4, 4)]
    )
    trained = ksa.Segmenter(backbone, 3, class_names=["road", "car", "sky"])
    model = ksa.change_classes(trained, ["road", "tree", "water", "sky"])
    print(model.num_classes)  # 4
    ```
    """
    check_segmenter(model, "change_classes")
    if isinstance(class_names, (int, np.integer)):
        num_classes, names, rows = check_num_classes(class_names), None, {}
    else:
        names = _check_names(model, class_names)
        num_classes = check_num_classes(len(names))
        known = {name: row for row, name in enumerate(model.class_names)}
        rows = {row: known[name] for row, name in enumerate(names) if name in known}
    check_names_and_colors(num_classes, names, colors)
    if colors is None and model.colors is not None and names:
        colors = _carried_colors(model.colors, rows, num_classes)
    new = _with_classes(
        model, num_classes, class_names=names, colors=colors, name=name or model.name
    )
    # Axes that belong to the classes are those whose length differs with their number.
    other = new
    if num_classes == model.num_classes:
        other = _with_classes(model, num_classes + 1)
    for layers in zip(*map(_scorers, (model, new, other)), strict=True):
        _carry_over(*layers, rows)
    carried = [names[row] for row in rows]
    fresh = [name for name in names or () if name not in carried]
    left = [name for name in model.class_names or () if name not in carried]
    carried, left = (list_names(each, most=10) for each in (carried, left))
    fresh = list_names(fresh, most=10) if names else num_classes
    print(
        f"Classes carried over with their weights: {carried}. New classes: {fresh}. "
        f"Classes left out: {left}."
    )
    return new


def _like(model, **changes):
    """Build a segmenter from the parts of another, some of them changed."""
    attributes = {"taps": "stages", "dtype": "dtype_policy"}
    arguments = {
        name: getattr(model, attributes.get(name, name))
        for name in inspect.signature(Segmenter).parameters
    }
    arguments["adapters"] = model.adapters or False
    return type(model)(**{**arguments, **changes})


def _policy_of(features):
    """Return the dtype policy that computes in the dtype of features."""
    dtype = features.dtype
    return f"mixed_{dtype}" if dtype in ("float16", "bfloat16") else dtype


def _check_names(model, class_names):
    """Return a list of new class names, validated with those of the model.

    Raises:
        TypeError: If `class_names` is not a list of strings.
        ValueError: If names are equal, or the model has none.
    """
    if not isinstance(class_names, (list, tuple)) or not all(
        isinstance(name, str) for name in class_names
    ):
        raise TypeError(
            "`class_names` must be a list of strings, or an integer for as many new "
            f"classes. Received: class_names={class_names!r}"
        )
    if model.class_names is None:
        raise ValueError(
            "Classes are carried over by name, and the model has no class names. Call "
            "model.name_classes([...]) first, or pass an integer for as many new "
            f"classes. Received: model='{model.name}' of {model.num_classes} classes"
        )
    for owner, names in (("class_names", class_names), ("model", model.class_names)):
        equal = sorted({name for name in names if list(names).count(name) > 1})
        if equal:
            raise ValueError(
                "Classes are carried over by name, so the names must differ; "
                "model.name_classes([...]) changes those of a model. Received: "
                f"`{owner}` with {equal} several times"
            )
    return list(class_names)


def _carried_colors(colors, rows, num_classes):
    """Return the colors of the new classes: `rows` of the old, others of a palette."""
    kept = {row: tuple(colors[old].tolist()) for row, old in rows.items()}
    free = (
        color
        for color in map(tuple, palette(num_classes + len(colors)).tolist())
        if color not in kept.values()
    )
    return [kept.get(row) or next(free) for row in range(num_classes)]


def _with_classes(model, num_classes, **changes):
    """Build a segmenter like another whose scoring layers are new and at random."""

    def renew(layer):
        config = layer.get_config()
        if "num_classes" not in config:
            raise ValueError(
                "The head, the adapters and an auxiliary layer are built for other "
                "classes from their configs, which must have `num_classes`. Add it to "
                "the layer's get_config, or build a new model on model.backbone with "
                f"another layer. Received: '{layer.name}', a {type(layer).__name__} "
                "without it"
            )
        return type(layer).from_config({**config, "num_classes": num_classes})

    parts = {
        "head": renew(model.head),
        "adapters": [*map(renew, model.adapters)] or False,
        "aux": renew(model.aux) if isinstance(model.aux, keras.Layer) else model.aux,
        "class_names": None,
        "colors": None,
    }
    return _like(model, num_classes=num_classes, **{**parts, **changes})


def _scorers(model):
    """Return the layers of a segmenter whose weights depend on the classes."""
    aux = [model.aux] if isinstance(model.aux, keras.Layer) else []
    return [model.head, *model.adapters, *aux]


def _carry_over(old, new, other, rows):
    """Copy the weights of a layer to one for other classes.

    Args:
        old: Layer with the weights.
        new: The same layer for the new classes, which are set at random.
        other: The same layer for a number of classes that differs from that of `old`.
        rows: Dict from the rows of the new classes to the rows of the old ones.
    """
    all_axes = _class_axes(old, other)
    for axes, weight, target in zip(all_axes, old.weights, new.weights, strict=True):
        # Along an axis of the classes those of `rows`, along another one everything.
        to, origin = (
            np.ix_(*(r if axis in axes else range(n) for axis, n in enumerate(shape)))
            for r, shape in (([*rows], target.shape), ([*rows.values()], weight.shape))
        )
        values = np.array(ops.convert_to_numpy(target))
        values[to] = ops.convert_to_numpy(weight)[origin]
        target.assign(values)


def _class_axes(layer, other):
    """Return, for each weight of a layer, the list of its axes that are classes.

    Args:
        layer: Layer with `num_classes` in its config.
        other: The same layer for another number of classes.

    Raises:
        ValueError: If weights depend on the number of classes in other ways than by
            axes of that length.
    """
    one, two = ([tuple(w.shape) for w in each.weights] for each in (layer, other))
    counts = tuple(each.get_config()["num_classes"] for each in (layer, other))
    fits = len(one) == len(two) and all(
        len(shape) == len(twin)
        and all(n == m or (n, m) == counts for n, m in zip(shape, twin, strict=True))
        for shape, twin in zip(one, two, strict=True)
    )
    if not fits:
        raise ValueError(
            "Weights can be carried over by class where the number of classes is the "
            "length of some of their axes and changes nothing else. Build a new model "
            f"on model.backbone with another layer. Received: '{layer.name}', a "
            f"{type(layer).__name__} with weights of the shapes {one} for {counts[0]} "
            f"classes and {two} for {counts[1]}"
        )
    return [
        [axis for axis, (n, m) in enumerate(zip(*pair, strict=True)) if n != m]
        for pair in zip(one, two, strict=True)
    ]
