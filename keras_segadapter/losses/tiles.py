"""Losses and counts over resized scores that never exist at full size.

At 150 classes and 512 x 512 pixels the logits of one image take 157 MB, and training
holds several of that size. Here a tile of the mask is resized at a time, by two small
matrix products, and what is wanted of it is taken at once. The cross-entropy's gradient
is made in the same pass: rematerialization would resize and exponentiate twice, and
Keras' `remat` inside its loops does not run on TensorFlow.
"""

import keras
from keras import ops

from keras_segadapter.layers.native import resize_bilinear

TILE = 64  # pixels of the mask per side


def resized_crossentropy(labels, weights, scores, label_smoothing=0.0):
    """Return the sum of `weights * cross-entropy(labels, resized scores)`.

    Args:
        labels: Class ids `(B, H, W)`, all of them classes.
        weights: float32 `(B, H, W)`.
        scores: float32 `(B, h, w, K)`; the only argument with a gradient.
        label_smoothing: Share of each label that is spread over all classes.
    """
    if not _to_resize(labels, scores):
        if label_smoothing:
            truth = ops.one_hot(labels, scores.shape[-1], dtype="float32")
            losses = keras.losses.categorical_crossentropy(
                truth, scores, from_logits=True, label_smoothing=label_smoothing
            )  # (B, H, W)
        else:
            losses = _crossentropy(labels, scores)  # (B, H, W)
        return ops.sum(losses * weights)
    batch, height, width, classes = ops.shape(scores)
    pixels, inside, *resize = cut(labels, scores)
    truths, weights = at_pixels(labels, pixels), at_pixels(weights, pixels)
    weights = weights * inside[:, None]
    # The rows of one_hot, which PyTorch makes by way of int64.
    table = ops.eye(classes) * (1.0 - label_smoothing) + label_smoothing / classes

    @ops.custom_gradient
    def total(scores):
        def of_tile(given):
            truth, weight, cells, down, across = given
            logits = resized(scores, cells, down, across)  # (B, R*C, K)
            truth, weight = ops.take(table, truth, axis=0), weight[..., None]
            largest = ops.max(logits, axis=-1, keepdims=True)
            powers = ops.exp(logits - largest)
            sums = ops.sum(powers, axis=-1, keepdims=True)
            chosen = ops.sum(truth * logits, axis=-1, keepdims=True)
            loss = ops.sum(weight * (ops.log(sums) + largest - chosen))
            change = (powers / sums - truth) * weight  # (B, R*C, K)
            return loss, resize_transposed(change, down, across)  # (B, r*c, K)

        losses, changes = ops.map(of_tile, (truths, weights, *resize))
        # Neighboring tiles share the cells at their edges.
        images = height * width * ops.arange(batch)
        places = images[:, None] + resize[0][:, None]  # (T, B, r*c)
        gradient = ops.segment_sum(
            ops.reshape(changes, (-1, classes)),
            ops.reshape(places, (-1,)),
            num_segments=batch * height * width,
        )
        gradient = ops.reshape(gradient, (batch, height, width, classes))

        def backward(*args, upstream=None):
            return gradient * (args[0] if upstream is None else upstream)

        return ops.sum(losses), backward

    return total(scores)


def crossentropy_map(labels, scores):
    """Return the cross-entropy `(B, H, W)` of each pixel, without a gradient.

    Args:
        labels: Class ids `(B, H, W)`, all of them classes.
        scores: float32 `(B, h, w, K)`.
    """
    scores = ops.stop_gradient(scores)
    if not _to_resize(labels, scores):
        return _crossentropy(labels, scores)
    pixels, _, *resize = cut(labels, scores)

    def of_tile(given):
        truth, *resize = given
        return _crossentropy(truth, resized(scores, *resize))  # (B, R*C)

    values = ops.map(of_tile, (at_pixels(labels, pixels), *resize))  # (T, B, R*C)
    return joined_tiles(values, labels, *resize[1:])


def _crossentropy(labels, logits):
    return keras.losses.sparse_categorical_crossentropy(
        labels, logits, from_logits=True
    )


def resized_argmax(labels, scores):
    """Return labels and the best classes of the resized scores, pixel by pixel.

    Args:
        labels: Class ids `(B, H, W)`.
        scores: `(B, h, w, K)`.

    Returns:
        Two int32 tensors of one shape: `(B, H, W)` or, tile by tile, `(T, B, R*C)`;
        there the label is -1 where a tile stands out of the image.
    """
    if not _to_resize(labels, scores):
        return labels, ops.cast(ops.argmax(scores, axis=-1), "int32")
    scores = ops.cast(scores, "float32")
    pixels, inside, *resize = cut(labels, scores)

    def of_tile(given):
        best = ops.argmax(resized(scores, *given), axis=-1)  # (B, R*C)
        return ops.cast(best, "int32")

    truths = ops.where(inside[:, None] > 0, at_pixels(labels, pixels), -1)
    return truths, ops.map(of_tile, tuple(resize))


def resized_whole(scores, labels):
    """Return scores `(B, H, W, K)` at the size of labels `(B, H, W)`, float32."""
    if not _to_resize(labels, scores):
        return ops.cast(scores, "float32")
    _, height, width = ops.shape(labels)[:3]
    return resize_bilinear(scores, height, width)


def _to_resize(labels, scores):
    """Return whether the sizes differ, or may differ at run time."""
    sizes = *labels.shape[1:3], *scores.shape[1:3]
    return None in sizes or sizes[:2] != sizes[2:]


def cut(labels, scores):
    """Cut T tiles of R x C pixels, and the r x c cells of the scores behind each.

    Returns:
        Pixels in the flat image, int32 `(T, R*C)`; 1.0 for those inside it, else 0.0;
        cells in the flat scores, int32 `(T, r*c)`; and the weights of the resize, down
        `(T, R, r)` and across `(T, C, c)`.
    """
    _, height, width = ops.shape(labels)
    _, low_height, low_width, _ = ops.shape(scores)
    columns = divided(width, TILE)
    tiles = ops.arange(divided(height, TILE) * columns)
    ys, y_inside, y_cells, down = cut_side(tiles // columns, height, low_height)
    xs, x_inside, x_cells, across = cut_side(tiles % columns, width, low_width)

    def joined(table):
        count, rows, columns = ops.shape(table)
        return ops.reshape(table, (count, rows * columns))

    pixels = joined(ys[:, :, None] * width + xs[:, None])
    inside = joined(y_inside[:, :, None] * x_inside[:, None])
    cells = joined(y_cells[:, :, None] * low_width + x_cells[:, None])
    return pixels, inside, cells, down, across


def cut_side(blocks, length, source):
    """Cut the blocks of a side that is resized from `source` cells to `length` pixels.

    Args:
        blocks: Numbers of the blocks `(T,)`.
        length: Pixels of the side.
        source: Cells of the scores along it.

    Returns:
        Pixels `(T, P)`; 1.0 for those inside the image, else 0.0; cells `(T, c)`; and
        bilinear weights `(T, P, c)`, half-pixel centers.
    """
    size = divided(length, divided(length, TILE))  # blocks of even size
    pixels = blocks[:, None] * size + ops.arange(size)
    ratio = ops.cast(source, "float32") / ops.cast(length, "float32")
    last = ops.cast(source, "float32") - 1.0
    positions = (ops.cast(pixels, "float32") + 0.5) * ratio - 0.5
    positions = ops.minimum(ops.maximum(positions, 0.0), last)
    # As many cells for each block, those past the edge with weight 0.
    reach = ops.arange(divided(size * source, length) + 2)
    cells = ops.cast(ops.floor(positions[:, :1]), "int32") + reach
    distances = positions[:, :, None] - ops.cast(cells, "float32")[:, None]
    weights = ops.maximum(1.0 - ops.abs(distances), 0.0)
    inside = ops.cast(pixels < length, "float32")
    pixels, cells = ops.minimum(pixels, length - 1), ops.minimum(cells, source - 1)
    return pixels, inside, cells, weights


def divided(length, size):
    """Return `length / size`, rounded up; TensorFlow may know it at run time only."""
    return -(-length // size)


def at_pixels(maps, pixels):
    """Return what maps `(B, H, W)` hold at pixels `(T, P)` of the flat image."""
    batch, height, width = ops.shape(maps)
    maps = ops.reshape(maps, (batch, height * width))
    return ops.transpose(ops.take(maps, pixels, axis=1), (1, 0, 2))  # (T, B, P)


def joined_tiles(values, labels, down, across):
    """Return values of tiles `(T, B, R*C)` as maps `(B, H, W)`, like the labels'."""
    batch, height, width = ops.shape(labels)
    columns, rows = divided(width, TILE), divided(height, TILE)
    tile_rows, tile_columns = ops.shape(down)[1], ops.shape(across)[1]
    values = ops.reshape(values, (rows, columns, batch, tile_rows, tile_columns))
    values = ops.transpose(values, (2, 0, 3, 1, 4))  # (B, rows, R, columns, C)
    sides = rows * tile_rows, columns * tile_columns
    return ops.reshape(values, (batch, *sides))[:, :height, :width]


def resized(scores, cells, down, across):
    """Resize the cells of a tile to its logits `(B, R*C, K)`."""
    batch, height, width, classes = ops.shape(scores)
    (rows, low_rows), (columns, low_columns) = ops.shape(down), ops.shape(across)
    flat = ops.reshape(scores, (batch, height * width, classes))
    logits = ops.take(flat, cells, axis=1)  # (B, r*c, K)
    logits = ops.reshape(logits, (batch, low_rows, low_columns * classes))
    logits = ops.matmul(down, logits)  # (B, R, c*K)
    logits = ops.reshape(logits, (batch * rows, low_columns, classes))
    logits = ops.matmul(across, logits)  # (B*R, C, K)
    return ops.reshape(logits, (batch, rows * columns, classes))


def resize_transposed(change, down, across):
    """Return the gradient `(B, r*c, K)` of a tile's cells from that of its logits."""
    batch, classes = ops.shape(change)[0], change.shape[-1]
    (rows, low_rows), (columns, low_columns) = ops.shape(down), ops.shape(across)
    change = ops.reshape(change, (batch * rows, columns, classes))
    change = ops.matmul(ops.transpose(across), change)  # (B*R, c, K)
    change = ops.reshape(change, (batch, rows, low_columns * classes))
    change = ops.matmul(ops.transpose(down), change)  # (B, r, c*K)
    return ops.reshape(change, (batch, low_rows * low_columns, classes))
