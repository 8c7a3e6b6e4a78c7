"""Segmenter: the whole model, trained on one mask, saved and loaded."""

import dataclasses
import types

import keras
import numpy as np

from keras_segadapter.checks import (
    check_masks,
    check_num_classes,
    ignored_ids,
)
from keras_segadapter.folding import fold
from keras_segadapter.head import MLPHead
from keras_segadapter.inference import check_input, label_images
from keras_segadapter.preprocessing import default_preprocessing
from keras_segadapter.stages import Stage, resolve_taps
from keras_segadapter.training.backups import Backup
from keras_segadapter.training.compiling import (
    check_loss,
    check_names,
    check_resize,
    tile_of,
    with_loss_scale,
)
from keras_segadapter.training.epochs import ShuffledArrays, count_epochs
from keras_segadapter.training.losses import SegmentationCrossentropy
from keras_segadapter.training.metrics import MeanIoU
from keras_segadapter.training.optimizers import AdamW
from keras_segadapter.wiring import resolve_adapters, wire


@keras.saving.register_keras_serializable("keras_segadapter")
class Segmenter(keras.Model):
    """A segmentation model with adapters in its backbone's path.

    Made by `build_segmenter`. Calling it gives logits `(B, H, W, K)` at image size; in
    training it gives `{"logits": ..., "aux": ...}`, the auxiliary map being computed in
    that case alone. `model(images, aux=True)` asks for both at any time, `aux=False`
    for logits only; inside another model's graph the choice made in the call holds.

    `compile()` and `fit(images, masks)` train it on one integer mask; `segment(images)`
    gives class ids; `save` and `keras.models.load_model` keep everything.

    Attributes:
        backbone: The model that was passed in; it shares its layers with this one.
        stages: The list of `Stage` that were adapted.
        num_classes: Number of classes K.

    Example:

    ```python
    import keras
    import numpy as np
    import keras_segadapter as ksa

    backbone = keras.Sequential([
        keras.Input((None, None, 3)),
        keras.layers.Conv2D(8, 4, 4, activation="relu"),
        keras.layers.Conv2D(16, 2, 2, activation="relu"),
    ])
    model = ksa.build_segmenter(backbone, num_classes=3)
    model.compile()
    images = np.random.randint(0, 256, (4, 32, 48, 3), "uint8")
    masks = np.random.randint(0, 3, (4, 32, 48), "uint8")
    model.fit(images, masks, batch_size=2, verbose=0)
    print(model.segment(images[0]).shape)  # (32, 48)
    model.save("model.keras")
    model = keras.models.load_model("model.keras")
    ```
    """

    def __init__(self, inputs, outputs, parts, name=None):
        super().__init__(inputs, outputs, name=name)
        # A namespace: Keras would count a list or layer put here directly among this
        # model's parts.
        self._parts = parts
        self._output_keys = tuple(outputs)
        # The graph without the auxiliary path, for all but training.
        parts.logits_model = keras.Model(inputs, outputs["logits"])
        self._step = None  # "fit" or "evaluate" in a step of theirs
        self._tile = None  # as in the losses, if they resize the scores themselves
        self._metrics_by_output = False

    @property
    def backbone(self):
        return self._parts.backbone

    @property
    def stages(self):
        return list(self._parts.stages)

    @property
    def num_classes(self):
        return self._parts.num_classes

    def __call__(self, inputs, *args, aux=None, **kwargs):
        if isinstance(inputs, keras.KerasTensor):
            # What a graph was promised at this call must hold whenever it runs.
            aux = bool(kwargs.get("training")) if aux is None else aux
        return super().__call__(inputs, *args, aux=aux, **kwargs)

    def call(self, inputs, training=None, mask=None, aux=None):
        if self._step and self._tile:
            return self._parts.scores_model.call(inputs, training=training, mask=mask)
        if self._gives_all(training, aux):
            return super().call(inputs, training=training, mask=mask)
        return self._parts.logits_model.call(inputs, training=training, mask=mask)

    def compute_output_spec(self, inputs, training=None, mask=None, aux=None):
        outputs = super().compute_output_spec(inputs)
        return outputs if self._gives_all(training, aux) else outputs["logits"]

    def _gives_all(self, training, aux):
        if aux is None:
            wanted = training or self._step == "evaluate"
            aux = bool(wanted) and len(self._output_keys) > 1
        return aux

    def compile(
        self,
        optimizer=None,
        loss=None,
        loss_weights=None,
        metrics=None,
        *,
        ignore_class=255,
        aux_weight=0.4,
        jit_compile="auto",
        **kwargs,
    ):
        """Configure training. Without arguments: the paper's losses, AdamW 6e-5, mIoU.

        Args:
            optimizer: As in Keras. By default `keras_segadapter.AdamW()`.
            loss: One loss for all outputs, or a dict by output ("logits", "aux"; with
                `aux="per_stage"` "aux_s4" and so on). By default
                `SegmentationCrossentropy(ignore_class)`; with `tile=64` in it training
                takes a fraction of the memory, to the same numbers.
            loss_weights: Dict by output. By default 1 for the logits and `aux_weight`
                for each auxiliary output; with a dict of losses 1, as in Keras.
            metrics: A list, for the logits, or a dict by output. By default
                `[MeanIoU(num_classes, ignore_class)]`; `[]` for none.
            ignore_class: Id of void pixels, several ids, or None, for the default loss
                and metric.
            aux_weight: Weight lambda of the auxiliary loss (paper, section 2).
            jit_compile: As in Keras: True for XLA (`torch.compile` on torch).
            **kwargs: As in `keras.Model.compile`.

        Raises:
            TypeError: If `ignore_class` is neither None, an id nor a list of ids.
            ValueError: If `aux_weight` is negative, a dict names another output, a loss
                takes one-hot masks or probabilities, not ids and logits, or has `tile`
                where another loss or a metric has not.

        Example:

        ```python
        import keras
        import keras_segadapter as ksa

        backbone = keras.Sequential(
            [keras.Input((None, None, 3)), keras.layers.Conv2D(8, 4, 4)]
        )
        model = ksa.build_segmenter(backbone, num_classes=3)
        model.compile(keras.optimizers.SGD(0.1), ignore_class=[0, 255])
        ```
        """
        ids = ignored_ids(ignore_class)
        if not aux_weight >= 0:
            raise ValueError(
                f"`aux_weight` must be at least 0. Received: aux_weight={aux_weight}"
            )
        for argument, value in (
            ("loss", loss),
            ("loss_weights", loss_weights),
            ("metrics", metrics),
        ):
            if _is_dict(value):
                check_names(argument, value, self._output_keys)
        for each in loss.values() if _is_dict(loss) else [loss]:
            check_loss(each)
        if not _is_dict(loss):
            if loss is None:
                loss = SegmentationCrossentropy(ids)
            loss = {key: loss for key in self._output_keys}
            if loss_weights is None:
                loss_weights = {key: aux_weight for key in self._output_keys}
                loss_weights["logits"] = 1.0
        if _is_dict(loss_weights):
            loss_weights = {key: loss_weights.get(key, 1.0) for key in loss}
        self._tile = tile_of(loss.values())
        if metrics is None:
            metrics = [MeanIoU(self.num_classes, ids, self._tile)]
        if self._tile:
            check_resize(keras.tree.flatten(metrics))
        self._metrics_by_output = _is_dict(metrics)
        self._jit_requested = jit_compile
        optimizer = keras.optimizers.get(AdamW() if optimizer is None else optimizer)
        if kwargs.get("auto_scale_loss", True) and any(
            layer.compute_dtype == "float16" for layer in self.layers
        ):
            # Keras asks for the model's own precision alone, which a backbone's may
            # differ from.
            optimizer = with_loss_scale(optimizer)
        super().compile(
            optimizer=optimizer,
            loss=loss,
            loss_weights=loss_weights,
            metrics=metrics,
            jit_compile=jit_compile,
            **kwargs,
        )
        # Built at once, so that a file saved before the first step holds it whole.
        self.optimizer.build(self.trainable_variables)

    def get_compile_config(self):
        config = super().get_compile_config()
        # Keras saves what "auto" came to on this machine; the next one may differ.
        if config:
            config["jit_compile"] = self._jit_requested
        return config

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config))

    def fit(self, x=None, y=None, batch_size=None, epochs=1, *, backup=None, **kwargs):
        """Train on images and ONE integer mask each, as `keras.Model.fit`.

        Args:
            x: Images `(N, H, W, C)`, or a tf.data.Dataset, PyDataset, torch DataLoader
                or generator of `(images, masks)`.
            y: Masks `(N, H, W)` of class ids, or a dict of them by output.
            batch_size: Images a step where `x` is an array; Keras' default is 32.
            epochs: Passes over the data. A dataset with an attribute `epoch` (those of
                `keras_segadapter.data`) is told the number of each.
            backup: Folder, for this training alone, that keeps its state after each
                epoch. The same call with the same folder, after a kill or an error,
                goes on after the last epoch that was completed.
            **kwargs: As in `keras.Model.fit`. `shuffle` is False by default where `x`
                is no array: a dataset has an order of its own.

        Returns:
            Keras' `History`, with loss, logits_loss, aux_loss, mIoU and their val_; the
            epochs before a resumption included.

        Raises:
            ValueError: If masks in memory (arrays, or the first batch of a PyDataset)
                hold ids outside the classes or do not fit the images, if `class_weight`
                is given, or if a backup does not fit the model. Ids outside the classes
                from other sources make the default loss NaN.

        A training that was resumed ends with the weights of one that was not where its
        data and the random numbers at the start are the same: fix them with
        `keras.utils.set_random_seed`. Arrays and datasets with an `epoch` are shuffled
        by its number; the random states of dropout and stochastic depth are in the
        backup. What callbacks remember (`EarlyStopping`, `ReduceLROnPlateau`) is not.

        Example: see `Segmenter`.
        """
        if kwargs.get("class_weight") is not None:
            raise ValueError(
                "Keras' `class_weight` does not work with masks. Call "
                "compile(loss=keras_segadapter.SegmentationCrossentropy("
                "class_weight=[one weight a class])) instead."
            )
        if y is None:
            kwargs.setdefault("shuffle", False)
        if self.compiled:  # else Keras says so
            self._check_data(x, y)
            validation = kwargs.get("validation_data")
            pair = isinstance(validation, (tuple, list))
            self._check_data(*(validation[:2] if pair else [validation]))
        callbacks = keras.tree.flatten(kwargs.pop("callbacks", None) or [])
        if backup is not None:
            backup = Backup(backup)
            if y is not None:
                x = self._in_epochs(x, y, batch_size, kwargs)
                y = batch_size = None
            start = backup.restore(self) or kwargs.get("initial_epoch", 0)
            kwargs["initial_epoch"] = start
            if hasattr(x, "epoch"):
                x.epoch = start  # whatever it was in a fit that stopped
            callbacks.append(backup)  # last: what the others change counts
        if hasattr(x, "epoch"):
            callbacks.insert(0, count_epochs(x))
        history = super().fit(x, y, batch_size, epochs, callbacks=callbacks, **kwargs)
        if backup is not None:
            history.epoch, history.history = backup.epochs, backup.history
        return history

    def train_step(self, *args):
        self._step = "fit"
        try:
            return super().train_step(*args)
        finally:
            self._step = None

    def test_step(self, *args):
        # The auxiliary loss is wanted in evaluation too, which calls without training.
        self._step = "evaluate"
        try:
            return super().test_step(*args)
        finally:
            self._step = None

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        return super().compute_loss(
            x,
            self._for_each_output(y),
            self._all_outputs(x, y_pred, training),
            self._for_each_output(sample_weight),
            training,
        )

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        if self._metrics_by_output:
            y, sample_weight = map(self._for_each_output, (y, sample_weight))
            y_pred = self._all_outputs(x, y_pred, training=False)
        else:
            y, y_pred, sample_weight = (
                value["logits"] if _is_dict(value) else value
                for value in (y, y_pred, sample_weight)
            )
        return super().compute_metrics(x, y, y_pred, sample_weight)

    def _for_each_output(self, value):
        if value is None or _is_dict(value):
            return value
        return {key: value for key in self._output_keys}

    def _all_outputs(self, x, y_pred, training):
        if _is_dict(y_pred):
            return y_pred
        if len(self._output_keys) == 1:
            return {"logits": y_pred}
        # Keras builds the losses from a call without training, which gave logits alone.
        return self(x, training=training, aux=True)

    def segment(self, images):
        """Class ids of one image or several, of any size.

        Images are padded to a multiple of the deepest stride by repeating the border,
        and the result is cropped; a model of fixed input size resizes instead. Pixels
        go in as they are stored, 0..255, uint8 or float.

        Args:
            images: One image `(H, W, C)`, a batch `(B, H, W, C)`, or a list of images
                of any sizes. Anything that `numpy.asarray` takes, Pillow images too.

        Returns:
            Class ids `(H, W)`, `(B, H, W)`, or a list; uint8 up to 256 classes, int32
            beyond.

        Raises:
            ValueError: If the shape does not fit the model, values are not finite, or a
                float image lies in 0..1 while the model expects 0..255.

        Example: see `Segmenter`.
        """
        if isinstance(images, (list, tuple)):
            return [self.segment(image) for image in images]
        images = np.asarray(images)
        check_input(self, images)
        if images.ndim == 3:
            return label_images(self, images[None])[0]
        return label_images(self, images)

    def for_inference(self, labels=False):
        """The model to deploy: the same logits from less work, and no coarse path.

        Batch norms are folded into the layers in front of them, `mu` and `Linear after
        Cls` of the adapters and the head's batch norms into linear layers; dropout
        is left out. Adapters on the tokens of a vision transformer stay as they are.
        What has nothing to fold is shared with this model, so make it after training.

        Args:
            labels: Whether the output is class ids instead of logits.

        Returns:
            A functional `keras.Model` from images `(B, H, W, C)` as this model takes
            them to float32 logits `(B, H, W, K)`, or class ids `(B, H, W)`: uint8 up to
            256 classes, int32 beyond. It can be saved, and loaded after `import
            keras_segadapter`. `examples/export.py` writes it for other runtimes.

        Example:

        ```python
        import keras
        import numpy as np
        import keras_segadapter as ksa

        backbone = keras.Sequential(
            [keras.Input((None, None, 3)), keras.layers.Conv2D(8, 4, 4)]
        )
        model = ksa.build_segmenter(backbone, num_classes=3)
        deployed = model.for_inference(labels=True)
        print(deployed(np.zeros((1, 32, 48, 3), "float32")).shape)  # (1, 32, 48)
        ```
        """
        folded = fold(self._parts.logits_model, f"{self.name}_inference")
        if not labels:
            return folded
        logits = keras.Input(folded.output.shape[1:])
        ids = keras.ops.argmax(logits, axis=-1)  # (B, H, W)
        ids = keras.ops.cast(ids, "uint8" if self.num_classes <= 256 else "int32")
        # A model of its own: see `fold` for the names of its operations.
        labelled = keras.Model(logits, ids, name="labels")(folded.output)
        return keras.Model(folded.input, labelled, name=folded.name)

    def _in_epochs(self, x, y, batch_size, kwargs):
        """Arrays as a dataset with an `epoch`; takes what it needs out of `kwargs`."""
        if kwargs.get("validation_split"):
            raise ValueError(
                "`validation_split` does not go with `backup`. Divide the arrays and "
                "pass `validation_data`. Received: "
                f"validation_split={kwargs['validation_split']}"
            )
        batch_size = 32 if batch_size is None else batch_size
        kwargs.setdefault("validation_batch_size", batch_size)
        weights = kwargs.pop("sample_weight", None)
        shuffle, kwargs["shuffle"] = kwargs.get("shuffle", True), False
        # The same in each process that sets the same seed.
        seed = np.random.randint(2**31)
        arrays = (x, y) if weights is None else (x, y, weights)
        return ShuffledArrays(arrays, batch_size, shuffle, seed)

    def _check_data(self, x, y=None):
        """Stop before training on masks in memory that cannot be right."""
        if isinstance(x, keras.utils.PyDataset):
            x, y = x[0][:2]
        for masks in y.values() if _is_dict(y) else [y]:
            if isinstance(masks, np.ndarray):
                check_masks(masks, np.shape(x), self.num_classes, self._ignored_ids())

    def _ignored_ids(self):
        losses = self.loss.values()  # compile makes it a dict
        ignored = [ignored_ids(getattr(loss, "ignore_class", None)) for loss in losses]
        return set().union(*ignored)

    def get_config(self):
        parts, serialize = self._parts, keras.saving.serialize_keras_object
        return {
            "name": self.name,
            "dtype": serialize(self.dtype_policy),
            "backbone": serialize(parts.backbone),
            "num_classes": parts.num_classes,
            "taps": [dataclasses.asdict(stage) for stage in parts.stages],
            "adapters": [serialize(adapter) for adapter in parts.adapters],
            "head": serialize(parts.head),
            "aux": parts.aux,
            "preprocessing": serialize(parts.preprocessing),
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        def revive(value):
            return keras.saving.deserialize_keras_object(value, custom_objects)

        model = build_segmenter(
            revive(config["backbone"]),
            config["num_classes"],
            taps=[Stage(**stage) for stage in config["taps"]],
            adapters=[revive(adapter) for adapter in config["adapters"]] or False,
            head=revive(config["head"]),
            aux=config["aux"],
            preprocessing=revive(config["preprocessing"]),
            name=config["name"],
        )
        model.dtype_policy = revive(config["dtype"])
        for layer in model.layers:
            if not layer.trainable:
                # Revived before the layers inside it were made: these are not frozen,
                # and Keras passes on no more than a change.
                layer.trainable = True
                layer.trainable = False
        return model


def build_segmenter(
    backbone,
    num_classes,
    *,
    taps=None,
    adapters=True,
    head=None,
    aux="sum",
    preprocessing=None,
    name=None,
):
    """Splice adapters into a backbone's path and put a decode head behind them.

    Each tapped stage's features X go through a `SegAdapter`; its adapted features Y
    replace X for everything that follows in the backbone and for the head (paper,
    section 2). Layers are shared with the backbone passed in, weights included: two
    models to be compared each want a backbone of their own. Freeze the backbone with
    `backbone.trainable = False`; its batch norms then keep their statistics.

    Args:
        backbone: A functional `keras.Model` or a built `keras.Sequential` with one
            image input, channels last, of fixed or open height and width.
        num_classes: Number of classes K, at least 2 (two classes are binary).
        taps: Where the stages end: a list of `Stage`, layer names or tensors of the
            backbone. By default `find_stages(backbone)`.
        adapters: True for the paper's adapters (scale 1e-2 at the deepest stage, a
            tenth of it at each shallower one), False for the same model without them,
            or a list of `SegAdapter`, one a tap, shallow to deep.
        head: Layer from the list of stage features to class scores at the finest
            stride. By default `MLPHead(num_classes)`.
        aux: What the auxiliary loss supervises: "sum", the adapters' scores resized to
            the finest stage and added (the paper's); "per_stage", each one's by itself;
            None, nothing.
        preprocessing: Layer from RGB in 0..255 to what the backbone expects. By default
            chosen to suit the backbone; `keras.layers.Identity()` for none.
        name: Name of the model.

    Returns:
        A `Segmenter`.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If the backbone, a tap, an adapter or the head does not fit.

    Example:

    ```python
    import keras
    import keras_segadapter as ksa

    backbone = keras.applications.MobileNetV3Small(
        include_top=False, weights=None, input_shape=(None, None, 3)
    )
    model = ksa.build_segmenter(backbone, num_classes=19)
    print([stage.stride for stage in model.stages])  # [4, 8, 16, 32]
    ```
    """
    check_num_classes(num_classes)
    if aux not in ("sum", "per_stage", None):
        raise ValueError(
            f'`aux` must be "sum", "per_stage" or None. Received: aux={aux!r}'
        )
    stages = resolve_taps(backbone, taps)
    adapters = resolve_adapters(adapters, stages, num_classes, aux)
    head = MLPHead(num_classes, name="head") if head is None else head
    if preprocessing is None:
        preprocessing = default_preprocessing(backbone)
    for argument, layer in (("head", head), ("preprocessing", preprocessing)):
        if not isinstance(layer, keras.Layer):
            raise TypeError(f"`{argument}` must be a Keras layer. Received: {layer!r}")
    inputs, outputs, at_stride, views = wire(
        backbone, num_classes, stages, adapters, head, aux, preprocessing
    )
    parts = types.SimpleNamespace(
        backbone=backbone,
        num_classes=num_classes,
        stages=stages,
        adapters=adapters,
        head=head,
        aux=aux,
        preprocessing=preprocessing,
        views=views,
        scores_model=keras.Model(inputs, at_stride),
    )
    return Segmenter(inputs, outputs, parts, name=name)


def _is_dict(value):
    return isinstance(value, dict)
