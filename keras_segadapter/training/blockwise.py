"""Losses and counts over resized scores that never exist at full size.

At 150 classes and 512 x 512 pixels the logits of one image take 157 MB, and training
holds several of that size. Here a few rows are resized at a time, by two small matrix
products, and what is wanted of them is taken at once. The cross-entropy's gradient is
made in the same pass: rematerialisation would resize and exponentiate twice, and Keras'
`remat` inside its loops does not run on TensorFlow.
"""

from keras import ops


def resized_crossentropy(labels, weights, scores, rows):
    """Sum of `weights * cross-entropy(labels, resized scores)`.

    Args:
        labels: Class ids `(B, H, W)`, all of them classes.
        weights: float32 `(B, H, W)`.
        scores: float32 `(B, h, w, K)`; the only argument with a gradient.
        rows: Rows of the mask at a time.
    """
    batch, low_height, low_width, classes = ops.shape(scores)
    _, height, width = ops.shape(labels)

    @ops.custom_gradient
    def total(scores):
        across = interpolation(ops.arange(width), width, low_width)  # (W, w)

        def add(pixels, new, carry):
            loss, gradient = carry
            down = interpolation(pixels, height, low_height)  # (R, h)
            logits = resized_rows(scores, down, across)  # (B*R, W, K)
            truth = ops.reshape(ops.take(labels, pixels, axis=1), (-1, width))
            weight = ops.take(weights, pixels, axis=1) * new[:, None]
            weight = ops.reshape(weight, (-1, width, 1))  # (B*R, W, 1)
            truth = ops.one_hot(truth, classes)  # (B*R, W, K)
            largest = ops.max(logits, axis=-1, keepdims=True)
            powers = ops.exp(logits - largest)
            sums = ops.sum(powers, axis=-1, keepdims=True)
            chosen = ops.sum(truth * logits, axis=-1, keepdims=True)
            loss = loss + ops.sum(weight * (ops.log(sums) + largest - chosen))
            change = (powers / sums - truth) * weight  # (B*R, W, K)
            # The resize, transposed.
            change = ops.matmul(ops.transpose(across), change)  # (B*R, w, K)
            change = ops.reshape(change, (batch, -1, low_width * classes))
            return loss, gradient + ops.matmul(ops.transpose(down), change)

        zeros = ops.zeros((batch, low_height, low_width * classes))
        loss, gradient = over_rows(add, (ops.zeros(()), zeros), height, rows)
        gradient = ops.reshape(gradient, ops.shape(scores))

        def backward(*args, upstream=None):
            return gradient * (args[0] if upstream is None else upstream)

        return loss, backward

    return total(scores)


def resized_argmax_counts(count, labels, scores, rows, cells):
    """Sum over blocks of rows of `count(labels, best classes)`, int32 `(cells,)`.

    Args:
        count: Function of class ids `(B*R, W)` and as many predicted ones; those of
            rows that were counted before come as -1.
        labels: Class ids `(B, H, W)`.
        scores: float32 `(B, h, w, K)`.
        rows: Rows of the mask at a time.
        cells: Number of counts.
    """
    _, height, width = ops.shape(labels)
    _, low_height, low_width, _ = ops.shape(scores)
    across = interpolation(ops.arange(width), width, low_width)  # (W, w)

    def add(pixels, new, counts):
        down = interpolation(pixels, height, low_height)  # (R, h)
        best = ops.argmax(resized_rows(scores, down, across), axis=-1)  # (B*R, W)
        truth = ops.where(new[:, None] > 0, ops.take(labels, pixels, axis=1), -1)
        return counts + count(ops.reshape(truth, (-1, width)), ops.cast(best, "int32"))

    return over_rows(add, ops.zeros((cells,), dtype="int32"), height, rows)


def over_rows(add, carry, height, rows):
    """Run `carry = add(pixels, new, carry)` over blocks of `rows` rows.

    `pixels` are the rows of the block; `new`, float32, is 0 for those that a block
    before had, since the last one is moved up to end with the image.
    """
    # TensorFlow may know the height at run time alone.
    rows = min(rows, height) if isinstance(height, int) else ops.minimum(rows, height)

    def step(block, carry):
        pixels = ops.minimum(block * rows, height - rows) + ops.arange(rows)
        return add(pixels, ops.cast(pixels >= block * rows, "float32"), carry)

    return ops.fori_loop(0, (height + rows - 1) // rows, step, carry)


def interpolation(pixels, length, source):
    """Weights `(len(pixels), source)` of these pixels of a side that is resized from
    `source` to `length`, bilinear with half-pixel centres."""
    ratio = ops.cast(source, "float32") / ops.cast(length, "float32")
    positions = (ops.cast(pixels, "float32") + 0.5) * ratio - 0.5
    last = ops.cast(source, "float32") - 1.0
    positions = ops.minimum(ops.maximum(positions, 0.0), last)
    distances = positions[:, None] - ops.cast(ops.arange(source), "float32")
    return ops.maximum(1.0 - ops.abs(distances), 0.0)


def resized_rows(scores, down, across):
    """Rows `(B*R, W, K)` of the resized scores `(B, h, w, K)`."""
    batch, low_height, low_width, classes = ops.shape(scores)
    flat = ops.reshape(scores, (batch, low_height, low_width * classes))
    rows = ops.matmul(down, flat)  # (B, R, w*K)
    return ops.matmul(across, ops.reshape(rows, (-1, low_width, classes)))
