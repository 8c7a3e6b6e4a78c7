"""Pictures of what a model makes of a few images, after each epoch of its training."""

import warnings
from pathlib import Path

import keras
import numpy as np

from keras_segadapter.data.reading import read_image
from keras_segadapter.extras import import_extra
from keras_segadapter.inference.predict import check_input
from keras_segadapter.inference.views import Views, heat
from keras_segadapter.validation import check_integer, check_segmenter
from keras_segadapter.visualization import as_rgb, colorize, palette, panels


class TrainingPictures(keras.callbacks.Callback):
    """Callback that writes pictures of a few images, one row each, after each epoch.

    `epoch_0007.png` shows the image, the truth and the prediction; of a model with
    adapters also the coarse map (argmax of the auxiliary output, with `aux="sum"`) and
    the side output of each stage (argmax of its adapter's scores S).
    `epoch_0007_features.png` shows the features of each stage, X before the adapter and
    Y behind it: the mean of their absolute values over the channels, each map from its
    smallest to its largest value in matplotlib's colormap "inferno", black to yellow.
    Every map shows the pixels of its stage.

    Training is not affected: weights, random numbers and the optimizer stay as they
    would be without the callback. If pictures can't be written, as on a full disk, it
    goes on without them, after one warning.

    Args:
        images: Images `(N, H, W, C)` as the model takes them: about 1 to 8, such as the
            first ones of the validation set. `visualization.as_rgb` says how those that
            are not RGB are shown.
        masks: Integer class ids `(N, H, W)`.
        folder: Path of the folder for the PNG files.
        every: Integer. Number of epochs from one picture to the next; the last epoch
            always has one. Defaults to `1`.
        colors: RGB colors, uint8 `(num_classes, 3)`, such as a dataset's `.colors`.
            Defaults to `None`, for the model's `colors`, or `visualization.palette` if
            it has none.
        tensorboard: Path of a log folder of TensorBoard, to which the pictures are
            written too, at the steps of Keras' `TensorBoard` (epochs from 0). It needs
            `keras-segadapter[tensorboard]`, on any backend. Beside JAX or PyTorch on a
            GPU, call `tf.config.set_visible_devices([], "GPU")` first, or TensorFlow
            takes its memory. Defaults to `None`.

    Raises:
        ImportError: If `tensorboard` is given and not installed.
        TypeError: If the model is not a `Segmenter`, when training begins.
        ValueError: If an argument is not as described or, when training begins, does
            not fit the model.

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

    Source: paper, figure 5, shows such features.
    """

    def __init__(self, images, masks, folder, every=1, colors=None, tensorboard=None):
        super().__init__()
        self.images, self.masks = np.asarray(images), np.asarray(masks)
        if (
            self.images.ndim != 4
            or self.images.shape[:3] != self.masks.shape
            or not self.images.size
        ):
            raise ValueError(
                "`images` must be of shape (N, height, width, channels), and `masks` "
                "(N, height, width) of the same size. Received: images of shape "
                f"{self.images.shape}, masks of shape {self.masks.shape}"
            )
        colorize(self.masks[0], colors=colors)  # It raises before work is lost.
        self.colors = colors
        self.folder = Path(folder)
        self.every = check_integer("every", every)
        self.tensorboard = tensorboard
        if tensorboard is not None:
            _summary()  # It raises before work is lost.

    def on_train_begin(self, logs=None):
        check_segmenter(self.model, "TrainingPictures")
        check_input(self.model, self.images)
        self._views = Views(self.model)
        colors = self.model.colors if self.colors is None else self.colors
        if colors is None:
            colors = palette(self.model.num_classes)
        self._colors = np.asarray(colors)[: self.model.num_classes]
        self._shown = [as_rgb(image) for image in self.images]
        self.folder.mkdir(parents=True, exist_ok=True)
        self._warned = False

    def on_epoch_end(self, epoch, logs=None):
        if (epoch + 1) % self.every and epoch + 1 != self.params["epochs"]:
            return
        ids, features = self._views(self.images)  # (N, height, width) by title
        labels = {"truth": self.masks, **ids}
        columns = {"image": self._shown}
        for title, maps in labels.items():
            columns[title] = [colorize(one, colors=self._colors) for one in maps]
        heats = {"image": self._shown}
        for title, maps in features.items():
            heats[title] = [heat(values) for values in maps]
        name = f"epoch_{epoch + 1:04}"
        try:
            paths = {
                "predictions": self._write(
                    columns, f"{name}.png", *self._legend(labels)
                ),
                "features": self._write(heats, f"{name}_features.png"),
            }
            if self.tensorboard is not None:
                self._write_summary(paths, epoch)
        except OSError as error:
            if not self._warned:
                warnings.warn(
                    "Pictures can't be written, and training goes on without them: "
                    f"{error}. Received: folder={self.folder}, after epoch {epoch + 1}",
                    stacklevel=2,
                )
            self._warned = True

    def _legend(self, labels):
        """Return the names and colors of the classes that occur in maps of ids."""
        names = self.model.class_names or range(self.model.num_classes)
        present = np.unique(np.concatenate([*labels.values()], axis=None))
        known = [i for i in present.tolist() if 0 <= i < len(self._colors)]
        return [names[i] for i in known], self._colors[known]

    def _write_summary(self, paths, epoch):
        from tensorflow import errors

        summary = _summary()
        try:
            with summary.create_file_writer(str(self.tensorboard)).as_default(epoch):
                for tag, path in paths.items():
                    summary.image(tag, read_image(path)[None])
        except errors.OpError as error:
            raise OSError(f"TensorBoard's files: {error.message}") from error

    def _write(self, columns, name, *legend):
        rows = [list(row) for row in zip(*columns.values(), strict=True)]
        return panels(rows, list(columns), self.folder / name, *legend)


def _summary():
    """Return TensorFlow's writer of TensorBoard's files, which needs no backend."""
    import_extra("tensorboard", "TrainingPictures(tensorboard=)")
    return import_extra("tensorflow", "TrainingPictures(tensorboard=)").summary
