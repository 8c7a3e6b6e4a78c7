"""Pictures of what a model makes of a few images, after each epoch of its training."""

from pathlib import Path

import keras
import numpy as np
from keras import ops
from PIL import Image, ImageOps

from keras_segadapter.layers.resize import ResizeLike
from keras_segadapter.validation import check_integer
from keras_segadapter.graph.stages import stage_keys
from keras_segadapter.inference.predict import check_input, deepest_stride, fitted
from keras_segadapter.visualization import colorize, panels


class TrainingPictures(keras.callbacks.Callback):
    """Writes pictures of a few images, a row each, after each epoch.

    `epoch_0007.png`: image, truth, prediction and, of a model with adapters, the coarse
    map (the argmax of the auxiliary output, with `aux="sum"`) and each stage's side
    output (the argmax of its adapter's scores S). `epoch_0007_features.png`: of each
    stage the features X before the adapter and Y behind it, as the mean of their
    absolute values over the channels, each map from its least (black) to its largest
    value (yellow). All is shown in the pixels of its stage.

    Training goes on as it would without: weights, random numbers and the optimizer are
    not touched.

    Args:
        images: RGB images, uint8 of shape `(N, height, width, 3)`: the first ones of
            the validation set, 1 to 8 or so.
        masks: Their class ids, integers of shape `(N, height, width)`.
        folder: Where to write the PNG files.
        every: Number of epochs from one picture to the next. The last epoch has one.
        colors: RGB colors, uint8 of shape `(num_classes, 3)`: a dataset's `.colors`. By
            default those of `visualization.palette`.
        tensorboard: Folder of TensorBoard's, where the pictures go too, at the step of
            Keras' own `TensorBoard` (epochs from 0). TensorFlow writes it, on any
            backend: install `keras-segadapter[tensorboard]`. Beside JAX or PyTorch on a
            GPU, call `tf.config.set_visible_devices([], "GPU")` first, or TensorFlow
            takes its memory.

    Raises:
        ImportError: If `tensorboard` is asked for and not installed.
        TypeError: When the training begins, if the model is no `Segmenter`.
        ValueError: If an argument is not as described or, when the training begins,
            does not fit the model.

    Example:

    ```python
    import keras
    import keras_segadapter as ksa

    images, masks = ksa.data.make_scenes(4, size=(64, 64))
    backbone = keras.Sequential(
        [keras.Input((None, None, 3)), keras.layers.Conv2D(8, 4, 4)]
    )
    model = ksa.build_segmenter(backbone, num_classes=8)
    model.compile()
    pictures = ksa.TrainingPictures(images[2:], masks[2:], "pictures")
    model.fit(images[:2], masks[:2], verbose=0, callbacks=[pictures])
    # pictures/epoch_0001.png, pictures/epoch_0001_features.png
    ```

    Source: the paper's figure 5 shows such features.
    """

    def __init__(self, images, masks, folder, every=1, colors=None, tensorboard=None):
        super().__init__()
        self.images, self.masks = np.asarray(images), np.asarray(masks)
        if (
            self.images.dtype != "uint8"
            or self.images.shape != (*self.masks.shape, 3)
            or self.masks.ndim != 3
            or not self.masks.size
        ):
            raise ValueError(
                "TrainingPictures takes images, uint8 (N, height, width, 3), and masks "
                "(N, height, width) of the same size. Received: images "
                f"{self.images.dtype} {self.images.shape}, masks {self.masks.shape}"
            )
        self.truths = [colorize(mask, 255, colors) for mask in self.masks]
        self.colors = colors
        self.folder = Path(folder)
        self.every = check_integer("every", every)
        self.tensorboard = tensorboard
        if tensorboard is not None:
            _summary()  # before work is lost

    def on_train_begin(self, logs=None):
        stride = deepest_stride(self.model)
        check_input(self.model, self.images)
        size = self.images.shape[1:3]
        self._inputs = fitted(self.model, self.images, stride)  # (N, h, w, 3)
        resized = None not in self.model.input_shape[1:3]
        self._covered = size if resized else self._inputs.shape[1:3]
        self._views = _views(self.model)
        self.folder.mkdir(parents=True, exist_ok=True)

    def on_epoch_end(self, epoch, logs=None):
        if (epoch + 1) % self.every and epoch + 1 != self.params["epochs"]:
            return
        # Not `predict`: its DataLoader would draw from torch's random numbers.
        seen = self._views.predict_on_batch(self._inputs)
        columns = {"image": self.images, "truth": self.truths}
        features = {"image": self.images}
        for title in self._views.output:  # `seen` is in an order of the backend's own
            maps = self._at_image_size(seen[title])  # (N, height, width)
            if title[0] in "XY":
                features[title] = [_heat(values) for values in maps]
            else:
                columns[title] = [colorize(labels, 255, self.colors) for labels in maps]
        name = f"epoch_{epoch + 1:04}"
        paths = {
            "predictions": self._write(columns, f"{name}.png"),
            "features": self._write(features, f"{name}_features.png"),
        }
        if self.tensorboard is not None:
            summary = _summary()
            with summary.create_file_writer(str(self.tensorboard)).as_default(epoch):
                for tag, path in paths.items():
                    summary.image(tag, np.asarray(Image.open(path))[None])

    def _at_image_size(self, maps):
        """The nearest pixel of maps `(N, h, w)` for each pixel of the images."""
        rows, columns = (
            np.arange(side) * length // covered
            for side, length, covered in zip(
                self.images.shape[1:3], maps.shape[1:], self._covered, strict=True
            )
        )
        return maps[:, rows[:, None], columns]

    def _write(self, columns, name):
        rows = [list(row) for row in zip(*columns.values(), strict=True)]
        return panels(rows, list(columns), self.folder / name)


def _views(model):
    """Return a model on the layers of a segmenter, from images to what is shown."""
    keys = stage_keys(model.stages)
    scoring = [
        key
        for key, adapter in zip(keys, model.adapters, strict=False)  # or no adapters
        if adapter.return_scores
    ]
    scores = {"prediction": model.for_inference().output}
    if "aux" in model.output:
        image = keras.tree.flatten(model.input)
        scores["coarse map"] = ResizeLike(dtype="float32")([model.output["aux"], *image])
    for key, side in zip(scoring, model.features["scores"], strict=True):
        scores[f"side {key}"] = side
    views = {title: ops.argmax(value, axis=-1) for title, value in scores.items()}
    for index, key in enumerate(keys):
        shown = {"X": "inputs", "Y": "outputs"} if model.adapters else {"X": "inputs"}
        for letter, name in shown.items():
            maps = model.features[name][index]  # (B, h, w, C)
            sizes = ops.abs(ops.cast(maps, "float32"))
            views[f"{letter} {key}"] = ops.mean(sizes, axis=-1)  # (B, h, w)
    return keras.Model(model.input, views)


def _heat(values):
    """Paint values `(height, width)` from black over red to yellow, uint8 RGB."""
    values = np.where(np.isfinite(values), values, 0)  # of a training that broke
    least, most = values.min(), values.max()
    shades = (values - least) / (most - least if most > least else 1)
    shades = Image.fromarray(np.round(255 * shades).astype("uint8"))
    return np.asarray(ImageOps.colorize(shades, "black", "yellow", mid="red"))


def _summary():
    """TensorFlow's writer of TensorBoard's files, which works beside any backend."""
    try:
        import tensorboard  # noqa: F401
        from tensorflow import summary
    except ImportError as error:
        raise ImportError(
            "Pictures for TensorBoard need it and TensorFlow. Install them: pip "
            "install keras-segadapter[tensorboard]"
        ) from error
    return summary
