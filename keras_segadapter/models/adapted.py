"""The paper's models: a backbone with adapters in its path and an MLP head."""

from keras_segadapter.backbones.convnext import (
    ConvNeXtBase,
    ConvNeXtLarge,
    ConvNeXtSmall,
    ConvNeXtTiny,
    ConvNeXtXLarge,
)
from keras_segadapter.backbones.mit import MiTB0, MiTB1, MiTB2, MiTB3, MiTB4, MiTB5
from keras_segadapter.layers.adapter import SegAdapter
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
    """Build Adapt-MiT-B0: MiT-B0 with adapters in its path and an MLP head.

    It has 4.8 M parameters with 150 classes and takes RGB images in 0..255. AdaptMiTB1
    to AdaptMiTB5 have the same arguments and larger backbones.

    Args:
        num_classes: Integer of at least 2 (two classes are binary). Number of classes
            K.
        weights: Weights of the backbone, as in `MiTB0`: None for random ones,
            "imagenet" for the Hub's nvidia/mit-b0 (b1 to b5; mind their license), or
            another checkpoint. Adapters and head start at random. Defaults to `None`.
        input_shape: Tuple `(height, width, channels)`, with None for an open height or
            width. Defaults to `(None, None, 3)`.
        adapters: True for the paper's adapters, False for the same model without them,
            the baseline, or a list of `SegAdapter`, one per stage. Defaults to `True`.
        head_channels: Integer of at least 1. Width C_d of the head. Defaults to `256`.
        drop_path: Number in [0, 1). Stochastic depth: the rate at which the last
            block's residuals are dropped in training. It rises linearly from 0 at the
            first block. Defaults to `0.1`.
        name: String. Name of the model. Defaults to `"adapt_mit_b0"`, and to
            `"mit_b0_mlp"` for the baseline.

    Returns:
        A `Segmenter`; its `backbone` is a `MiTB0`.

    Raises:
        TypeError: If `adapters` is of the wrong kind.
        ValueError: If an argument is out of range, or if the weights can't be read or
            do not fit.

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
    """Build Adapt-MiT-B1, with 17.3 M parameters for 150 classes.

    Example: see `AdaptMiTB0`.
    """
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
    """Build Adapt-MiT-B2, with 28.4 M parameters for 150 classes.

    Example: see `AdaptMiTB0`.
    """
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
    """Build Adapt-MiT-B3, with 48.2 M parameters for 150 classes.

    Example: see `AdaptMiTB0`.
    """
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
    """Build Adapt-MiT-B4, with 65.0 M parameters for 150 classes.

    Example: see `AdaptMiTB0`.
    """
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
    """Build Adapt-MiT-B5, with 85.6 M parameters for 150 classes.

    Example: see `AdaptMiTB0`.
    """
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
    """Build Adapt-ConvNeXt-T: ConvNeXt-T with adapters in its path and an MLP head.

    It has 35.5 M parameters with 150 classes and takes RGB images in 0..255.
    AdaptConvNeXtSmall, Base, Large and XLarge have the same arguments.

    On ADE20K the settings published with the paper differ from these defaults:
    `drop_path` is 0.4 for Tiny and 0.2 for Base, `head_channels` is 384 for Small and
    512 for Base.

    Args:
        num_classes: Integer of at least 2 (two classes are binary). Number of classes
            K.
        weights: Weights of the backbone, as in `ConvNeXtTiny`: None for random ones,
            "imagenet" for those of keras.applications, or another checkpoint. Those of
            "imagenet" for Base, Large and XLarge were trained on ImageNet-22k first,
            unlike the paper's. Adapters and head start at random. Defaults to `None`.
        input_shape: Tuple `(height, width, channels)`, with None for an open height or
            width. Defaults to `(None, None, 3)`.
        adapters: True for the paper's adapters, False for the same model without them,
            the baseline, or a list of `SegAdapter`, one per stage. Defaults to `True`.
        head_channels: Integer of at least 1. Width C_d of the head. Defaults to `256`.
        drop_path: Number in [0, 1). Stochastic depth: the rate at which the last
            block's residual is dropped in training. It rises linearly from 0 at the
            first block. Defaults to `0.1`.
        name: String. Name of the model. Defaults to `"adapt_convnext_tiny"`, and to
            `"convnext_tiny_mlp"` for the baseline.

    Returns:
        A `Segmenter`; its `backbone` is a `ConvNeXtTiny`.

    Raises:
        TypeError: If `adapters` is of the wrong kind.
        ValueError: If an argument is out of range, or if the weights can't be read or
            do not fit.

    Example:

    ```python
    import keras_segadapter as ksa

    model = ksa.AdaptConvNeXtTiny(num_classes=150, drop_path=0.4)
    print([stage.channels for stage in model.stages])  # [96, 192, 384, 768]
    ```

    Source: paper, sections 3 to 5.
    """
    head = MLPHead(num_classes, head_channels, name="head")
    backbone = ConvNeXtTiny(weights, input_shape, drop_path)
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
    """Build Adapt-ConvNeXt-S, with 57.1 M parameters for 150 classes.

    Example: see `AdaptConvNeXtTiny`.
    """
    head = MLPHead(num_classes, head_channels, name="head")
    backbone = ConvNeXtSmall(weights, input_shape, drop_path)
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
    """Build Adapt-ConvNeXt-B, with 100.5 M parameters for 150 classes.

    Example: see `AdaptConvNeXtTiny`.
    """
    head = MLPHead(num_classes, head_channels, name="head")
    backbone = ConvNeXtBase(weights, input_shape, drop_path)
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
    """Build Adapt-ConvNeXt-L, with 223.8 M parameters for 150 classes.

    Example: see `AdaptConvNeXtTiny`.
    """
    head = MLPHead(num_classes, head_channels, name="head")
    backbone = ConvNeXtLarge(weights, input_shape, drop_path)
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
    """Build Adapt-ConvNeXt-XL, with 395.9 M parameters for 150 classes.

    Example: see `AdaptConvNeXtTiny`.
    """
    head = MLPHead(num_classes, head_channels, name="head")
    backbone = ConvNeXtXLarge(weights, input_shape, drop_path)
    return _segmenter(backbone, head, adapters, name)


def _segmenter(backbone, head, adapters, name):
    """Build a segmenter, by default named after its backbone."""
    if adapters is True:  # The paper's have no norm in front, in ConvNeXt neither.
        adapters = [
            SegAdapter(head.num_classes, scale_init=scale, name=f"adapter_s{stride}")
            for stride, scale in ((4, 1e-5), (8, 1e-4), (16, 1e-3), (32, 1e-2))
        ]
    if name is None:
        baseline = adapters is False
        name = f"{backbone.name}_mlp" if baseline else f"adapt_{backbone.name}"
    return build_segmenter(
        backbone, head.num_classes, adapters=adapters, head=head, name=name
    )
