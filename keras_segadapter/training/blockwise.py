"""Losses and counts over resized scores that never exist at full size.

At 150 classes and 512 x 512 pixels the logits of one image take 157 MB, and training
holds several of that size. Here a tile of the mask is resized at a time, by two small
matrix products, and what is wanted of it is taken at once. The cross-entropy's gradient
is made in the same pass: rematerialisation would resize and exponentiate twice, and
Keras' `remat` inside its loops does not run on TensorFlow.
"""

from keras import ops


def resized_crossentropy(labels, weights, scores, tile):
    """Sum of `weights * cross-entropy(labels, resized scores)`.

    Args:
        labels: Class ids `(B, H, W)`, all of them classes.
        weights: float32 `(B, H, W)`.
        scores: float32 `(B, h, w, K)`; the only argument with a gradient.
        tile: Largest side of a tile, in pixels of the mask.
    """
    batch, height, width, classes = ops.shape(scores)

    @ops.custom_gradient
    def total(scores):
        def of_tile(index):
            pixels, inside, cells, down, across = cut(index, labels, scores, tile)
            logits = resized(scores, cells, down, across)  # (B, R*C, K)
            weight = ops.take(flat(weights), pixels, axis=1) * inside  # (B, R*C)
            weight = weight[..., None]
            truth = ops.take(flat(labels), pixels, axis=1)
            # one_hot's values, which on PyTorch makes them by way of int64.
            truth = ops.take(ops.eye(classes), truth, axis=0)  # (B, R*C, K)
            largest = ops.max(logits, axis=-1, keepdims=True)
            powers = ops.exp(logits - largest)
            sums = ops.sum(powers, axis=-1, keepdims=True)
            chosen = ops.sum(truth * logits, axis=-1, keepdims=True)
            loss = ops.sum(weight * (ops.log(sums) + largest - chosen))
            change = (powers / sums - truth) * weight  # (B, R*C, K)
            change = resize_transposed(change, down, across)  # (B*r*c, K)
            images = height * width * ops.arange(batch)
            return loss, change, ops.reshape(images[:, None] + cells, (-1,))

        losses, changes, places = ops.map(of_tile, indices(labels, tile))
        # Neighbouring tiles share the cells at their edge.
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


def resized_argmax(labels, scores, tile):
    """Labels and best classes of the resized scores, `(T, B, R*C)` each, in the order
    of the tiles; the label is -1 where a tile stands out of the image.

    Args:
        labels: Class ids `(B, H, W)`.
        scores: float32 `(B, h, w, K)`.
        tile: Largest side of a tile, in pixels of the mask.
    """

    def of_tile(index):
        pixels, inside, cells, down, across = cut(index, labels, scores, tile)
        best = ops.argmax(resized(scores, cells, down, across), axis=-1)  # (B, R*C)
        truth = ops.take(flat(labels), pixels, axis=1)
        return ops.where(inside > 0, truth, -1), ops.cast(best, "int32")

    return ops.map(of_tile, indices(labels, tile))


def indices(labels, tile):
    _, height, width = ops.shape(labels)
    return ops.arange(divided(height, tile) * divided(width, tile))


def cut(index, labels, scores, tile):
    """One tile of R x C pixels and the r x c cells of the scores that it is made from.

    Returns:
        Its pixels in `flat(labels)`, int32 `(R*C,)`; 1.0 for those inside the image,
        else 0.0; its cells in `flat(scores)`, int32 `(r*c,)`; and the weights of the
        resize, down `(R, r)` and across `(C, c)`.
    """
    _, height, width = ops.shape(labels)
    _, low_height, low_width, _ = ops.shape(scores)
    columns = divided(width, tile)
    ys, y_inside, y_cells, down = cut_side(index // columns, height, low_height, tile)
    xs, x_inside, x_cells, across = cut_side(index % columns, width, low_width, tile)
    pixels = ops.reshape(ys[:, None] * width + xs, (-1,))
    inside = ops.reshape(y_inside[:, None] * x_inside, (-1,))
    cells = ops.reshape(y_cells[:, None] * low_width + x_cells, (-1,))
    return pixels, inside, cells, down, across


def cut_side(index, length, source, tile):
    """One block of a side that is resized from `source` cells to `length` pixels,
    bilinear with half-pixel centres: pixels, which of them are inside, cells, and the
    weights `(pixels, cells)`."""
    size = divided(length, divided(length, tile))  # blocks of even size
    pixels = index * size + ops.arange(size)
    ratio = ops.cast(source, "float32") / ops.cast(length, "float32")
    last = ops.cast(source, "float32") - 1.0
    positions = (ops.cast(pixels, "float32") + 0.5) * ratio - 0.5
    positions = ops.minimum(ops.maximum(positions, 0.0), last)
    # As many cells for each block, those past the edge with weight 0.
    reach = ops.arange(divided(size * source, length) + 2)
    cells = ops.cast(ops.floor(positions[0]), "int32") + reach
    distances = positions[:, None] - ops.cast(cells, "float32")
    weights = ops.maximum(1.0 - ops.abs(distances), 0.0)
    inside = ops.cast(pixels < length, "float32")
    pixels, cells = ops.minimum(pixels, length - 1), ops.minimum(cells, source - 1)
    return pixels, inside, cells, weights


def divided(length, size):
    """`length / size`, rounded up. TensorFlow may know them at run time alone."""
    return -(-length // size)


def flat(maps):
    """Maps `(B, H, W, ...)` as `(B, H*W, ...)`."""
    batch, height, width, *rest = ops.shape(maps)
    return ops.reshape(maps, (batch, height * width, *rest))


def resized(scores, cells, down, across):
    """Logits `(B, R*C, K)` of a tile."""
    batch, classes = ops.shape(scores)[0], scores.shape[-1]
    (rows, low_rows), (columns, low_columns) = ops.shape(down), ops.shape(across)
    logits = ops.take(flat(scores), cells, axis=1)  # (B, r*c, K)
    logits = ops.reshape(logits, (batch, low_rows, low_columns * classes))
    logits = ops.matmul(down, logits)  # (B, R, c*K)
    logits = ops.reshape(logits, (batch * rows, low_columns, classes))
    logits = ops.matmul(across, logits)  # (B*R, C, K)
    return ops.reshape(logits, (batch, rows * columns, classes))


def resize_transposed(change, down, across):
    """Gradient `(B*r*c, K)` of a tile's cells from that of its logits."""
    batch, classes = ops.shape(change)[0], change.shape[-1]
    (rows, _), (columns, low_columns) = ops.shape(down), ops.shape(across)
    change = ops.reshape(change, (batch * rows, columns, classes))
    change = ops.matmul(ops.transpose(across), change)  # (B*R, c, K)
    change = ops.reshape(change, (batch, rows, low_columns * classes))
    change = ops.matmul(ops.transpose(down), change)  # (B, r, c*K)
    return ops.reshape(change, (-1, classes))
