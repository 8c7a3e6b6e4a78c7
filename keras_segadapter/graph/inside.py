"""The layers inside models and inside other layers, by their paths."""

import functools

import keras


def layers_inside(layer):
    """Return pairs of the paths and the layers in a layer or model, at any depth.

    A path is made of the names of layers in models, and of the attributes of layers
    inside layers without leading underscores. It starts with "" for the layer itself.
    """
    found, seen = [], set()

    def walk(path, layer):
        if id(layer) not in seen:
            seen.add(id(layer))
            found.append((path, layer))
            for name, inner in _parts_of(layer):
                walk(f"{path}/{name}".lstrip("/"), inner)

    walk("", layer)
    return found


def _parts_of(layer):
    """Return pairs of the names and the layers right inside a layer or model."""
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
