"""Segmenter: the whole model, trained on one mask, saved and loaded."""

import dataclasses
import inspect
import math

import keras
import numpy as np
from keras import layers

from keras_segadapter.backbones.origin import resolve_origin
from keras_segadapter.backbones.preprocessing import (
    check_backbone,
    default_preprocessing,
    normalizes,
)
from keras_segadapter.data.folders import reading
from keras_segadapter.data_validation import check_batch
from keras_segadapter.graph.adapters import resolve_adapters
from keras_segadapter.graph.assemble import assemble
from keras_segadapter.graph.replay import as_functional
from keras_segadapter.graph.splice import (
    free_name,
    layer_names,
    neck_divisor,
    note_coarse_stages,
)
from keras_segadapter.graph.stages import Stage, resolve_taps
from keras_segadapter.inference.predict import as_array, check_input, label_images
from keras_segadapter.inference.rows import label_dtype
from keras_segadapter.inference.threads import (
    InferenceModel,
    KeepWeights,
    release_weights,
    weights_kept,
)
from keras_segadapter.layers.head import MLPHead
from keras_segadapter.lora import LoraState, lora_settings, restore_lora
from keras_segadapter.losses.resized import build_losses
from keras_segadapter.metrics import MeanIoU
from keras_segadapter.saving import (
    WeightsInMemory,
    check_savable,
    is_local,
    may_write,
    replacing,
    revive,
    size_of,
    write,
)
from keras_segadapter.training.averages import ending_with_averages
from keras_segadapter.training.balance import weigh_classes
from keras_segadapter.training.compiling import (
    check_arguments,
    check_learning,
    fit_metrics,
    ignored_by,
    learning,
    losses_by_output,
)
from keras_segadapter.training.data_checks import (
    check_data,
    check_first_images,
    check_validation,
)
from keras_segadapter.training.optimizers import AdamW, with_loss_scale
from keras_segadapter.training.resume import locked, prepare_fit
from keras_segadapter.training.watch import DataWatch, StopOnNonsense
from keras_segadapter.validation import (
    check_config,
    check_integer,
    check_names_and_colors,
    check_num_classes,
    check_number,
    ignored_ids,
    is_auto,
)


@keras.saving.register_keras_serializable("keras_segadapter")
class Segmenter(keras.Model):
    """A segmentation model with adapters in its backbone's path.

    Each tapped stage's features X go through a `SegAdapter`; its adapted features Y
    replace X for everything that follows in the backbone and for the head (paper,
    section 2). Layers are shared with the backbone passed in, weights included: two
    models that are to be compared each need a backbone of their own. From then on its
    convolutions, batch norms and pooling of Keras are computed in ways that are faster
    on PyTorch and JAX, to the same numbers within rounding. Freeze the backbone with
    `backbone.trainable = False`; its batch norms then keep their statistics.

    Called, it gives class scores at the finest stride, as a dict: "logits" of the head
    and, where there is something to supervise, "aux". The losses and metrics of
    `compile` resize them to the mask. `predict`, `segment`, `export` and the model from
    `for_inference` give logits or class ids at the size of the image.

    To train in less memory, build it under `keras.RematScope("list_of_layers",
    layer_names=[...])`: the backward pass computes these layers again, instead of
    keeping what is inside them. Name adapters (`adapter_s4`) and MiT's attentions and
    networks (`stage1_block1_ffn`), not layers with batch norms or dropout, such as the
    head, whose statistics and masks would not stay the same. Load files under the same
    scope.

    Args:
        backbone: A functional `keras.Model` or a built `keras.Sequential` with one
            image input, channels last, of fixed or open height and width.
        num_classes: Integer of at least 2 (two classes are binary). Number of classes
            K.
        taps: List of `Stage`, layer names or tensors of the backbone: where its stages
            end. Defaults to `find_stages(backbone)`.
        adapters: True for the paper's adapters (scale 1e-2 at the deepest stage, a
            tenth of it at each shallower one), False for the same model without them,
            or a list of `SegAdapter`, one per tap, shallow to deep. With `True`,
            adapters get `normalize=True` where their stage ends in neither a layer norm
            nor a ReLU, and a `width` where they would have more than two fifths of its
            weights, as in a ResNet-50; printed lines say so. Defaults to `True`.
        neck: Layer from the list of adapted stage features to the list of feature maps
            that the head gets, such as `SimpleFeaturePyramid()` for a plain vision
            transformer. Features of taps in front of the final layer norm of a vision
            transformer go through that norm first; `keras.layers.Identity()` does only
            that. Defaults to `None`.
        head: Layer from that list of feature maps to class scores at the finest stride.
            Defaults to `MLPHead(num_classes)`.
        aux: What the auxiliary loss supervises. "sum": the adapters' scores, resized to
            the finest stage and added (the paper's); "per_stage": the scores of each
            adapter by themselves; a layer like `head`: its scores, as of an FCN head;
            None: nothing. Defaults to `"sum"`.
        preprocessing: Layer from RGB in 0..255 to what the backbone expects. Defaults
            to one chosen to suit the backbone; `keras.layers.Identity()` for none.
        class_names: List of K strings, for tables and pictures. Defaults to None: `fit`
            takes them from a dataset that has them.
        colors: RGB colors of the classes, uint8 `(K, 3)`. Defaults to None, as for
            `class_names`.
        weights_origin: String. Where the pretrained weights came from, for the record.
            Defaults to None: where the backbone has an attribute `weights_origin`, as
            those of this package with pretrained weights do, its value.
        name: String. Name of the model. Defaults to `None`.
        dtype: Dtype policy of the model as a whole. Defaults to the global policy.

    Attributes:
        backbone: The model that was passed in; it shares its layers with this one.
        num_classes: Number of classes K.
        stages: List of `Stage` that were adapted.
        size_divisor: Integer. Multiple, in pixels, to which `segment` and its kin pad
            the sides of images: the deepest stride of the backbone and the neck.
        adapters: List of `SegAdapter`, one per stage; empty without adapters.
        neck: The layer between the adapters and the decode head, or None.
        head: The decode head.
        preprocessing: The layer between the image and the backbone.
        takes_pixels: Whether images go in as pixels in 0..255, which the preprocessing
            or the backbone itself normalizes.
        scorer: Functional model from images to class scores at the finest stride,
            without the auxiliary path.
        class_names: Tuple of K strings, or None.
        colors: RGB colors, uint8 `(K, 3)`, or None.
        weights_origin: String, or None. Where the pretrained weights came from, such as
            "nvidia/mit-b0@main"; training does not change it.
        features: Dict of symbolic feature maps `(B, h, w, C)`, a list over the stages
            each: "inputs" and "outputs" of the adapters (without adapters the same) and
            their "scores". `keras.Model(model.input, model.features)` computes them.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If the backbone, a tap, an adapter, the neck or the head does not
            fit.

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
    model = ksa.Segmenter(backbone, num_classes=3)
    model.compile()
    images = np.random.randint(0, 256, (4, 32, 48, 3), "uint8")
    masks = np.random.randint(0, 3, (4, 32, 48), "uint8")
    model.fit(images, masks, batch_size=2, verbose=0)
    print(model.segment(images[0]).shape)  # (32, 48)
    model.save("model.keras")
    model = keras.models.load_model("model.keras")
    ```

    Source: paper, section 2.
    """

    def __init__(
        self,
        backbone,
        num_classes,
        *,
        taps=None,
        adapters=True,
        neck=None,
        head=None,
        aux="sum",
        preprocessing=None,
        class_names=None,
        colors=None,
        weights_origin=None,
        name=None,
        dtype=None,
    ):
        # Layers
        num_classes = check_num_classes(num_classes)
        functional = as_functional(backbone)
        check_backbone(functional)
        stages, divisor = resolve_taps(functional, taps)
        if taps is None and neck is None:
            note_coarse_stages(functional, stages)
        adapters = resolve_adapters(adapters, functional, stages, num_classes, aux)
        if head is None:
            head = MLPHead(num_classes, name=free_name("head", layer_names(functional)))
        if preprocessing is None:
            preprocessing = default_preprocessing(functional)

        # Functional model
        parts = adapters, neck, head, aux, preprocessing
        image, outputs, logits, features = assemble(
            functional, stages, num_classes, *parts
        )
        super().__init__(image, outputs, name=name)
        # Keras revives a frozen model or layer of another package with inner layers
        # that are not frozen, and hands down nothing but a change.
        revived = self.layers
        if all(layer.trainable for layer in backbone.layers):
            revived = [backbone, *revived]
        for layer in revived:
            if not layer.trainable:
                layer.trainable = True
                layer.trainable = False

        # Config
        if dtype is not None:
            self.dtype_policy = dtype
        # Kept from Keras, which would count what is behind the last tap as a part.
        object.__setattr__(self, "backbone", backbone)
        object.__setattr__(self, "lora_state", LoraState(functional))
        self.num_classes = num_classes
        self.stages = stages
        self.size_divisor = math.lcm(
            divisor, neck_divisor(neck, stages, features["outputs"])
        )
        self.adapters = adapters
        self.neck = neck
        self.head = head
        self.aux = aux
        self.preprocessing = preprocessing
        identity = isinstance(preprocessing, layers.Identity)
        self.takes_pixels = not identity or normalizes(functional)
        self.name_classes(class_names, colors)
        self.weights_origin = resolve_origin(weights_origin, backbone)
        self._features = features
        self.scorer = InferenceModel(
            image, outputs["logits"], name=f"{self.name}_scores"
        )
        self._at_image_size = InferenceModel(
            image, logits, name=f"{self.name}_inference"
        )

    @property
    def features(self):
        """Return the symbolic feature maps into and out of the adapters."""
        # Plain lists: JAX can't return those that Keras makes of an attribute's.
        return {name: [*maps] for name, maps in self._features.items()}

    def compile(
        self,
        optimizer="auto",
        loss="auto",
        loss_weights=None,
        metrics="auto",
        *,
        ignore_class="auto",
        aux_weight=0.1,
        jit_compile="auto",
        **kwargs,
    ):
        """Configure training. Without arguments: both losses, AdamW 6e-5, mIoU.

        Losses and metrics get the mask, class ids `(B, H, W)`, and the scores of an
        output resized to it, logits `(B, H, W, K)`. Those of this package resize them
        by themselves, in little memory; others, of Keras or your own, are put into a
        wrapper that resizes first.

        Args:
            optimizer: As in Keras; `"auto"` for `keras_segadapter.AdamW()`. Defaults to
                `"auto"`.
            loss: One loss for all outputs, or a dict by output ("logits", "aux"; with
                `aux="per_stage"` "aux_s4" and so on); `"auto"` or "crossentropy" for
                `SegmentationCrossentropy(ignore_class)`; "ohem" for that of hard pixels
                (`ohem_threshold=0.7`); "lovasz" for `LovaszSoftmax(ignore_class)`;
                "dice" for Dice over the batch, averaged over the classes that occur in
                it; a sum of these, as "crossentropy+dice"; None for none. Defaults to
                `"auto"`.
            loss_weights: Dict by output. Defaults to 1 for the logits and `aux_weight`
                for each auxiliary output; with a dict of losses to 1, as in Keras.
            metrics: Metric or list for the logits, or a dict by output; `"auto"` for
                `MeanIoU(num_classes, ignore_class)`; None for none. Defaults to
                `"auto"`.
            ignore_class: Integer, list of integers, or None. Ids of void pixels, for
                the loss and metrics of `"auto"`, for losses by name and for Keras' own
                metrics; a loss that is passed has its own. Defaults to `"auto"`: 255
                where that is not a class, that is, up to 255 classes.
            aux_weight: Number of at least 0. Weight lambda of the auxiliary loss
                (paper, section 2). The paper's is 0.4, which in short trainings of a
                whole network lost a point (benchmarks/evidence.py). Defaults to `0.1`.
            jit_compile: As in Keras: True for XLA (`torch.compile` on torch). Defaults
                to `"auto"`.
            **kwargs: As in `keras.Model.compile`.

        Raises:
            TypeError: If `ignore_class` is neither None, an integer nor a list of
                integers.
            ValueError: If `aux_weight` is negative, if an ignored id is a class, if a
                dict names another output, if class weights do not fit the classes, or
                if one of Keras' losses or metrics does not take ids and logits.

        Example:

        ```python
        import keras
        import keras_segadapter as ksa

        backbone = keras.Sequential(
            [keras.Input((None, None, 3)), keras.layers.Conv2D(8, 4, 4)]
        )
        model = ksa.build_segmenter(backbone, num_classes=3)
        model.compile(keras.optimizers.SGD(0.1), ignore_class=[254, 255])
        ```
        """
        ids = ignored_ids(ignore_class, self.num_classes)
        aux_weight = check_number("aux_weight", aux_weight, least=0)
        names, num_classes = list(self.output), self.num_classes
        weighted = kwargs.pop("weighted_metrics", None)
        check_arguments(
            names, loss_weights, loss=loss, metrics=metrics, weighted_metrics=weighted
        )
        if is_auto(optimizer):
            optimizer = AdamW()
        if is_auto(metrics):
            metrics = MeanIoU(num_classes, ids)
        loss, loss_weights = losses_by_output(
            names, num_classes, loss, loss_weights, aux_weight, ids
        )
        by_loss = ignored_by(loss, num_classes)
        # A list of metrics is for the logits, whose name is not put in front of theirs.
        by_output = isinstance(metrics, dict) or isinstance(weighted, dict)
        self._measures_all = by_output and len(names) > 1
        metrics, weighted = (
            fit_metrics(value, num_classes, sorted({*ids, *by_loss}))
            for value in (metrics, weighted)
        )
        optimizer = keras.optimizers.get(optimizer)
        if optimizer is not None and kwargs.get("auto_scale_loss", True):
            optimizer = with_loss_scale(optimizer, self.layers)
        self._jit_requested = jit_compile
        super().compile(
            optimizer=optimizer,
            loss=loss,
            loss_weights=loss_weights,
            metrics=metrics,
            weighted_metrics=weighted,
            jit_compile=jit_compile,
            **kwargs,
        )
        with_loss = [key for key, each in (loss or {}).items() if each is not None]
        # Kept from Keras, which would save them.
        object.__setattr__(self, "_watch", DataWatch(self, by_loss, with_loss))
        object.__setattr__(self, "_learning", learning(self))
        if optimizer is not None:
            # Built at once, so that a file saved before the first step holds it whole.
            self.optimizer.build(self.trainable_variables)
        if with_loss:
            build_losses(self)

    @property
    def metrics(self):
        watched = [self._watch] if self.compiled else []
        return [*super().metrics, *watched]

    def get_compile_config(self):
        config = super().get_compile_config()
        # Keras saves what "auto" came to on this machine; the next one may differ.
        if config:
            config["jit_compile"] = self._jit_requested
        return config

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config))

    def fit(self, x=None, y=None, *args, backup=None, **kwargs):
        """Train on images and ONE integer mask each, as `keras.Model.fit`.

        A training that was resumed ends with the weights of one that was not where its
        data and the random numbers at the start are the same: fix them with
        `keras.utils.set_random_seed`. Arrays and datasets with an `epoch` are shuffled
        by its number; the random states of dropout and stochastic depth are in the
        backup. What callbacks remember (`EarlyStopping`, `ReduceLROnPlateau`) is not.

        Where the optimizer averages weights (`paper_optimizer(ema=)`, or `use_ema=True`
        of Keras), validation and whatever callbacks do at the end of an epoch, such as
        saving the best model, see the averages. The raw weights learn on, and a backup
        holds both. `fit` ends with the averages, also where it is interrupted, so that
        another `fit` starts from them. Statistics of batch norms are not averaged.

        Args:
            x: Images `(N, H, W, C)`, or a tf.data.Dataset, PyDataset, torch DataLoader
                or generator of `(images, masks)`. A dataset with an attribute `epoch`
                (those of `keras_segadapter.data`) is given the number of each epoch.
            y: Masks `(N, H, W)` of class ids, or a dict of them by output.
            *args: As in `keras.Model.fit`, in its order: `batch_size`, `epochs`,
                `verbose` and so on.
            backup: Path of a folder of its own for each training, which keeps the state
                after each epoch, or None. The same call with the same folder, after a
                kill or an error, goes on after the last epoch that was completed. Only
                one process at a time can use a folder. Defaults to `None`.
            **kwargs: As in `keras.Model.fit`. `shuffle` defaults to `False` where `x`
                is not an array, since a dataset has an order of its own. `class_weight`
                may also be a list, or `"balanced"`: 1 / ln(1.02 + p) for a class with
                the share p of the pixels (`balanced_class_weight(bounded=True)`),
                counted in all masks of `x` first, which is printed. It sets the class
                weights of each `SegmentationCrossentropy` until the next `compile`, in
                validation and in saved files too.

        Returns:
            Keras' `History`, with loss, logits_loss, aux_loss, mIoU and their val_; the
            epochs before a resumption included.

        Raises:
            OSError: If a backup can't be written.
            TypeError: If images or masks are neither arrays nor sources of batches, or
                if `backup` is not a path.
            ValueError: If layers were frozen or unfrozen after `compile`, if there are
                no images or no masks, if the first images are not in the range that the
                model takes (0..255 where it normalizes them), if masks in memory
                (arrays, or the first batch of a PyDataset) hold ids outside the classes
                or do not fit the images, if the loss becomes NaN, as it does where
                other sources have ids outside the classes, if the masks are void
                throughout, if class weights do not fit the classes or the loss, or if
                a backup does not fit the model.

        Example: see `Segmenter`.
        """
        given = inspect.signature(super().fit).bind(x, y, *args, **kwargs).arguments
        check_integer("epochs", given.get("epochs", 1), least=0)
        if given.get("batch_size") is not None:
            check_integer("batch_size", given["batch_size"])
        if self.compiled:  # otherwise Keras says so
            check_learning(self, self._learning)
            check_data(self._watch, x, y)
            check_validation(self._watch, given.get("validation_data"))
        names = getattr(x, "class_names", None)
        if names is not None and len(names) == self.num_classes:
            self.name_classes(names, getattr(x, "colors", None))
        class_weight = given.pop("class_weight", None)
        if class_weight is not None and self.compiled:
            weigh_classes(self, class_weight, x, y)
        with locked(backup):
            state = prepare_fit(self, given, backup)
            given["callbacks"].insert(0, KeepWeights())
            try:
                read = reading(x, given.get("validation_data"))
                with read, ending_with_averages(self):
                    history = super().fit(**given)
            finally:
                release_weights(self)
        if state is not None:
            history.epoch, history.history = state.epochs, state.history
        return history

    def evaluate(self, x=None, y=None, *args, **kwargs):
        """Measure the loss and metrics; arguments, and errors on data, as in `fit`."""
        given = inspect.signature(super().evaluate).bind_partial(x, y, *args)
        callbacks = kwargs.pop("callbacks", given.arguments.pop("callbacks", None))
        in_fit = isinstance(callbacks, keras.callbacks.CallbackList)
        # `fit` ends the readers of validation data after its last epoch.
        with weights_kept(self), reading(None if in_fit else x):
            if self.compiled and not in_fit:
                check_data(self._watch, x, y)
                callbacks = [StopOnNonsense(), *keras.tree.flatten(callbacks or [])]
            return super().evaluate(**given.arguments, callbacks=callbacks, **kwargs)

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        """Compute the losses of all outputs, each on the one mask."""
        watch = self._watch
        check_batch(x, y, watch.channels, watch.outputs, watch.with_loss)
        y, sample_weight = map(self._for_each_output, (y, sample_weight))
        return super().compute_loss(x, y, y_pred, sample_weight, training)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Compute the metrics, each on the one mask."""
        masks = y if isinstance(y, dict) else {"logits": y}
        self._watch.update_state(x, masks, y_pred)
        values = self._for_each_output(y), y_pred, self._for_each_output(sample_weight)
        if not self._measures_all:
            values = [value if value is None else value["logits"] for value in values]
        return super().compute_metrics(x, *values)

    def _for_each_output(self, value):
        if value is None or isinstance(value, dict):
            return value
        return dict.fromkeys(self.output, value)

    def predict(self, x, *args, **kwargs):
        """Predict logits `(N, H, W, K)` at image size; arguments as in Keras.

        Raises:
            ValueError: If the first images are not in the range that the model takes.
        """
        with reading(x):
            x = check_first_images(DataWatch(self), x)
            return self._at_image_size.predict(x, *args, **kwargs)

    def predict_on_batch(self, x):
        """Predict logits `(B, H, W, K)` at image size of one batch."""
        return self._at_image_size.predict_on_batch(x)

    def export(self, *args, **kwargs):
        """Export `for_inference()`; arguments as in Keras."""
        return self._at_image_size.export(*args, **kwargs)

    def save(self, filepath, overwrite=True, zipped=None, **kwargs):
        """Save the model in a `.keras` file; arguments as in Keras.

        The file at `filepath` is replaced in one step: after an error or a kill, the
        old one is whole. A warning names layers that Keras could not load back.
        "hf://owner/name" is a repository on the Hugging Face Hub, which `model_card`
        describes to others; `keras.saving.load_model("hf://owner/name")` loads it.

        Raises:
            OSError: If the file can't be written.
            ValueError: If the file is an .h5 or .hdf5 file, which Keras could not load.
        """
        check_savable(self, filepath)
        whole = str(filepath).endswith(".keras") and zipped is not False
        if not whole or not is_local(filepath):
            return super().save(filepath, overwrite, zipped, **kwargs)
        if may_write(filepath, overwrite):
            with replacing(filepath, size_of(self)) as new:
                super().save(new, zipped=zipped, **kwargs)

    def save_weights(self, filepath, overwrite=True, max_shard_size=None):
        """Save the weights in a `.weights.h5` file; arguments as in Keras.

        As in `save`, the file is replaced in one step, unless it is split into shards.

        Raises:
            OSError: If the file can't be written.
        """
        whole = str(filepath).endswith(".weights.h5") and max_shard_size is None
        if not whole or not is_local(filepath):
            return super().save_weights(filepath, overwrite, max_shard_size)
        if may_write(filepath, overwrite):
            content = WeightsInMemory()
            super().save_weights(content)
            write(filepath, content.getbuffer())

    def segment(self, images):
        """Predict the class ids of one image or several, of any size.

        Images are padded to a multiple of the deepest stride by repeating the border,
        and the result is cropped; a model of fixed input size resizes instead. Pixels
        go in as they are stored, 0..255, uint8 or float.

        Threads may share a model for `segment`, `predict_logits`, `predict_labels` and
        `predict_on_batch`, also while one of them is in `fit`, `evaluate` or `predict`.
        Beside a `fit` on JAX they see the weights from the start of its epoch.

        Args:
            images: One image `(H, W, C)`, a batch `(B, H, W, C)`, or a list of images
                of any sizes; arrays, or Pillow images, which are read as files are:
                turned as their EXIF orientation says, with as many channels as the
                model takes.

        Returns:
            Class ids `(H, W)`, `(B, H, W)`, or a list; uint8 up to 256 classes, int32
            beyond.

        Raises:
            ValueError: If the shape does not fit the model, if values are not finite,
                or if they are in another range than 0..255 where the model takes that.

        Example: see `Segmenter`.
        """
        if isinstance(images, (list, tuple)):
            return [self.segment(image) for image in images]
        images = as_array(self, images)
        check_input(self, images)
        if images.ndim == 3:
            return label_images(self, images[None])[0]
        return label_images(self, images)

    def for_inference(self, labels=False):
        """Return a plain functional model from images to logits at image size.

        It has no auxiliary path and shares its layers with this model, so it can be
        called, nested in another model, trained there, saved and exported. Dropout acts
        in training only and is not in exported files.

        Args:
            labels: Boolean. Whether the output is class ids instead of logits. Defaults
                to `False`.

        Returns:
            A functional `keras.Model` from images `(B, H, W, C)` as this model takes
            them to float32 logits `(B, H, W, K)`, or class ids `(B, H, W)`: uint8 up to
            256 classes, int32 beyond. Once saved, it is loaded after `import
            keras_segadapter`. `export_model` writes it for other runtimes.

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
        model = self._at_image_size
        if not labels:
            return model
        logits = keras.Input(model.output.shape[1:])
        ids = keras.ops.argmax(logits, axis=-1)  # (B, H, W)
        ids = keras.ops.cast(ids, label_dtype(self.num_classes))
        # A model of its own: operations without a name are counted from "argmax" in
        # each process, and would clash beside those of a graph from a file.
        ids = keras.Model(logits, ids, name="labels")(model.output)
        return InferenceModel(model.input, ids, name=model.name)

    def name_classes(self, class_names=None, colors=None):
        """Give the classes names and colors, for tables, pictures and exported files.

        Args:
            class_names: List of K strings, or None.
            colors: RGB colors, uint8 `(K, 3)`, or None.

        Raises:
            ValueError: If they are not one for each class.
        """
        check_names_and_colors(self.num_classes, class_names, colors)
        known = getattr(self, "class_names", None)
        self.class_names = None if class_names is None else tuple(class_names)
        self.colors = None if colors is None else np.asarray(colors, "uint8")
        if known not in (None, self.class_names):
            print(f"The classes are now {self.class_names}; they were {known}.")

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        lora = lora_settings(self.backbone)
        return {
            "backbone": serialize(self.backbone),
            "num_classes": self.num_classes,
            "taps": [dataclasses.asdict(stage) for stage in self.stages],
            "adapters": [serialize(adapter) for adapter in self.adapters] or False,
            "neck": serialize(self.neck),
            "head": serialize(self.head),
            "aux": serialize(self.aux),
            "preprocessing": serialize(self.preprocessing),
            "class_names": self.class_names and list(self.class_names),
            "colors": None if self.colors is None else self.colors.tolist(),
            "weights_origin": self.weights_origin,
            "name": self.name,
            "dtype": serialize(self.dtype_policy),
            **({"lora": lora} if lora else {}),
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = {**config}
        lora = config.pop("lora", {})
        check_config(cls, config)
        for stage in config.get("taps") or ():
            check_config(Stage, stage)
        revived = revive(config, custom_objects)
        if config.get("taps"):
            revived["taps"] = [Stage(**stage) for stage in config["taps"]]
        model = cls(**revived)
        restore_lora(model.backbone, lora)
        return model


def build_segmenter(backbone, num_classes, **options):
    """Splice adapters into a backbone's path and put a decode head behind them.

    Args:
        backbone: A functional `keras.Model` or a built `keras.Sequential`.
        num_classes: Integer of at least 2. Number of classes K.
        **options: `taps`, `adapters`, `neck`, `head`, `aux`, `preprocessing`,
            `class_names`, `colors`, `weights_origin`, `name`, `dtype`, as in
            `Segmenter`.

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
    return Segmenter(backbone, num_classes, **options)
