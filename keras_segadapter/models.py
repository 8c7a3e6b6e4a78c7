"""The paper's models by name, in the manner of keras.applications."""

from keras_segadapter.backbones.convnext import convnext
from keras_segadapter.backbones.mit import MiTB0, MiTB1, MiTB2, MiTB3, MiTB4, MiTB5
from keras_segadapter.layers.head import MLPHead
from keras_segadapter.segmenter import build_segmenter


def AdaptMiTB0(
    num_classes,
    weights=None,
    input_shape=(None, None, 3),
    adapters=True,
    head_channels=256,
    drop_path=0.1,
    name=None,
):
    """Adapt-MiT-B0: MiT-B0 with adapters in its path and an MLP head.

    4.8 M parameters with 150 classes. AdaptMiTB1 to AdaptMiTB5 have the same arguments
    and larger backbones. Images go in as RGB in 0..255.

    Args:
        num_classes: Number of classes K, at least 2 (two classes are binary).
        weights: The backbone's, as `MiTB0` takes them: None for random ones, "imagenet"
            for the Hub's nvidia/mit-b0 (b1 to b5; mind their licence), or a checkpoint.
            Adapters and head start at random.
        input_shape: `(height, width, channels)`; None for an open height or width.
        adapters: True for the paper's adapters, False for the same model without them,
            the baseline, or a list of `SegAdapter`, one for each of the four stages.
        head_channels: Width C_d of the head.
        drop_path: Stochastic depth: rate at which the last block's residuals are
            dropped in training, rising linearly from 0 at the first.
        name: Name of the model. By default "adapt_mit_b0", and "mit_b0_mlp" for the
            baseline.

    Returns:
        A `Segmenter`; its `backbone` is a `MiTB0`.

    Raises:
        TypeError: If `adapters` is of the wrong kind.
        ValueError: If an argument is out of range, or the weights are not there or do
            not fit.

    Example:

    ```python
    import numpy as np
    import keras_segadapter as ksa

    model = ksa.AdaptMiTB0(num_classes=19)  # weights="imagenet" to start trained
    print(model.segment(np.zeros((60, 90, 3), "uint8")).shape)  # (60, 90)
    ```

    Source: paper, sections 3 to 5.
    """
    head = MLPHead(num_classes, head_channels, name="head")
    return _segmenter(MiTB0(weights, input_shape, drop_path), head, adapters, name)


def AdaptMiTB1(
    num_classes,
    weights=None,
    input_shape=(None, None, 3),
    adapters=True,
    head_channels=256,
    drop_path=0.1,
    name=None,
):
    """Adapt-MiT-B1, 17.3 M parameters with 150 classes. Example: see `AdaptMiTB0`."""
    head = MLPHead(num_classes, head_channels, name="head")
    return _segmenter(MiTB1(weights, input_shape, drop_path), head, adapters, name)


def AdaptMiTB2(
    num_classes,
    weights=None,
    input_shape=(None, None, 3),
    adapters=True,
    head_channels=256,
    drop_path=0.1,
    name=None,
):
    """Adapt-MiT-B2, 28.4 M parameters with 150 classes. Example: see `AdaptMiTB0`."""
    head = MLPHead(num_classes, head_channels, name="head")
    return _segmenter(MiTB2(weights, input_shape, drop_path), head, adapters, name)


def AdaptMiTB3(
    num_classes,
    weights=None,
    input_shape=(None, None, 3),
    adapters=True,
    head_channels=256,
    drop_path=0.1,
    name=None,
):
    """Adapt-MiT-B3, 48.2 M parameters with 150 classes. Example: see `AdaptMiTB0`."""
    head = MLPHead(num_classes, head_channels, name="head")
    return _segmenter(MiTB3(weights, input_shape, drop_path), head, adapters, name)


def AdaptMiTB4(
    num_classes,
    weights=None,
    input_shape=(None, None, 3),
    adapters=True,
    head_channels=256,
    drop_path=0.1,
    name=None,
):
    """Adapt-MiT-B4, 65.0 M parameters with 150 classes. Example: see `AdaptMiTB0`."""
    head = MLPHead(num_classes, head_channels, name="head")
    return _segmenter(MiTB4(weights, input_shape, drop_path), head, adapters, name)


def AdaptMiTB5(
    num_classes,
    weights=None,
    input_shape=(None, None, 3),
    adapters=True,
    head_channels=256,
    drop_path=0.1,
    name=None,
):
    """Adapt-MiT-B5, 85.6 M parameters with 150 classes. Example: see `AdaptMiTB0`."""
    head = MLPHead(num_classes, head_channels, name="head")
    return _segmenter(MiTB5(weights, input_shape, drop_path), head, adapters, name)


def AdaptConvNeXtTiny(
    num_classes,
    weights=None,
    input_shape=(None, None, 3),
    adapters=True,
    head_channels=256,
    drop_path=0.1,
    name=None,
):
    """Adapt-ConvNeXt-T: ConvNeXt with adapters in its path and an MLP head.

    35.5 M parameters with 150 classes. The backbone is the one of keras.applications
    with stochastic depth put in; AdaptConvNeXtSmall, Base, Large and XLarge have the
    same arguments. Images go in as RGB in 0..255.

    On ADE20K the settings published with the paper differ from these defaults: there
    `drop_path` is 0.4 for Tiny and 0.2 for Base, `head_channels` 384 for Small and 512
    for Base.

    Args:
        num_classes: Number of classes K, at least 2 (two classes are binary).
        weights: The backbone's, as keras.applications takes them: None for random ones,
            "imagenet", or a weights file. With "imagenet" Base, Large and XLarge saw
            ImageNet-21k first, unlike the paper's. Adapters and head start at random.
        input_shape: `(height, width, channels)`; None for an open height or width.
        adapters: True for the paper's adapters, False for the same model without them,
            the baseline, or a list of `SegAdapter`, one for each of the four stages.
        head_channels: Width C_d of the head.
        drop_path: Stochastic depth: rate at which the last block's residual is dropped
            in training, rising linearly from 0 at the first.
        name: Name of the model. By default "adapt_convnext_tiny", and
            "convnext_tiny_mlp" for the baseline.

    Returns:
        A `Segmenter`; its `backbone` is the ConvNeXt.

    Raises:
        TypeError: If `adapters` is of the wrong kind.
        ValueError: If an argument is out of range, or the weights are not there or do
            not fit.

    Example:

    ```python
    import keras_segadapter as ksa

    model = ksa.AdaptConvNeXtTiny(num_classes=150, drop_path=0.4)
    print([stage.channels for stage in model.stages])  # [96, 192, 384, 768]
    ```

    Source: paper, sections 3 to 5.
    """
    head = MLPHead(num_classes, head_channels, name="head")
    backbone = convnext("Tiny", weights, input_shape, drop_path)
    return _segmenter(backbone, head, adapters, name)


def AdaptConvNeXtSmall(
    num_classes,
    weights=None,
    input_shape=(None, None, 3),
    adapters=True,
    head_channels=256,
    drop_path=0.1,
    name=None,
):
    """Adapt-ConvNeXt-S, 57.1 M parameters with 150 classes.

    Example: see `AdaptConvNeXtTiny`.
    """
    head = MLPHead(num_classes, head_channels, name="head")
    backbone = convnext("Small", weights, input_shape, drop_path)
    return _segmenter(backbone, head, adapters, name)


def AdaptConvNeXtBase(
    num_classes,
    weights=None,
    input_shape=(None, None, 3),
    adapters=True,
    head_channels=256,
    drop_path=0.1,
    name=None,
):
    """Adapt-ConvNeXt-B, 100.5 M parameters with 150 classes.

    Example: see `AdaptConvNeXtTiny`.
    """
    head = MLPHead(num_classes, head_channels, name="head")
    backbone = convnext("Base", weights, input_shape, drop_path)
    return _segmenter(backbone, head, adapters, name)


def AdaptConvNeXtLarge(
    num_classes,
    weights=None,
    input_shape=(None, None, 3),
    adapters=True,
    head_channels=256,
    drop_path=0.1,
    name=None,
):
    """Adapt-ConvNeXt-L, 223.8 M parameters with 150 classes.

    Example: see `AdaptConvNeXtTiny`.
    """
    head = MLPHead(num_classes, head_channels, name="head")
    backbone = convnext("Large", weights, input_shape, drop_path)
    return _segmenter(backbone, head, adapters, name)


def AdaptConvNeXtXLarge(
    num_classes,
    weights=None,
    input_shape=(None, None, 3),
    adapters=True,
    head_channels=256,
    drop_path=0.1,
    name=None,
):
    """Adapt-ConvNeXt-XL, 395.9 M parameters with 150 classes.

    Example: see `AdaptConvNeXtTiny`.
    """
    head = MLPHead(num_classes, head_channels, name="head")
    backbone = convnext("XLarge", weights, input_shape, drop_path)
    return _segmenter(backbone, head, adapters, name)


def _segmenter(backbone, head, adapters, name):
    if name is None:
        baseline = adapters is False
        name = f"{backbone.name}_mlp" if baseline else f"adapt_{backbone.name}"
    return build_segmenter(
        backbone, head.num_classes, adapters=adapters, head=head, name=name
    )
