"""SegFormer: a MiT and its decode head, which segment with published weights."""

import operator

import keras

from keras_segadapter.backbones.mit import MiTB0, MiTB1, MiTB2, MiTB3, MiTB4, MiTB5
from keras_segadapter.backbones.mit_weights import STEM, assign_mit_weights
from keras_segadapter.backbones.origin import name_origin
from keras_segadapter.backbones.widening import widen_input, widen_stem
from keras_segadapter.data.labels import ADE20K, CITYSCAPES
from keras_segadapter.models.segformer_weights import (
    assign_segformer_weights,
    build_head,
    read_class_names,
    read_segformer_weights,
)
from keras_segadapter.segmenter import Segmenter
from keras_segadapter.validation import check_input_shape, check_num_classes

# NVIDIA's checkpoints on the Hub. With a revision, their names are never taken for a
# path in a folder `nvidia`.
ADE20K_WEIGHTS = "nvidia/segformer-{}-finetuned-ade-{}@main"
CITYSCAPES_WEIGHTS = "nvidia/segformer-{}-finetuned-cityscapes-1024-1024@main"


def SegFormerB0(
    num_classes=None,
    weights=None,
    input_shape=(None, None, 3),
    drop_path=0.1,
    name=None,
):
    """Build SegFormer-B0, which segments on the first line with published weights.

    It has 3.5 M parameters with 150 classes and takes RGB images in 0..255, of any
    size. SegFormerB1 to SegFormerB5 have the same arguments and larger backbones. The
    logits are those of transformers' SegformerForSemanticSegmentation, for half of the
    multiply-adds (see `SegFormerHead`).

    Args:
        num_classes: Integer of at least 2 (two classes are binary). Number of classes
            K. Defaults to `None`: as in the weights. For other classes than theirs,
            pass the model to `change_classes`.
        weights: None for random weights, or the source of those of a SegFormer.
            Defaults to `None`. Sources are:

            - "ade20k" or "cityscapes": NVIDIA's checkpoints of these datasets on the
              Hugging Face Hub, such as nvidia/segformer-b0-finetuned-ade-512-512. The
              NVIDIA Source Code License allows research and evaluation only, no
              commercial use, of copies in other formats too.
            - "imagenet": the encoder alone, as in `MiTB0`, under the same license. The
              head starts at random and needs `num_classes`, as with all files of a MiT.
            - Another name on the Hub, such as "owner/name" or "owner/name@revision". A
              path on disk of that name takes precedence.
            - A folder or file of transformers or segmentation_models_pytorch:
              `.safetensors`, `pytorch_model.bin`.
            - A `.pth` file of NVlabs' SegFormer or of OpenMMLab's mmsegmentation, whose
              SegFormers have another head: an `MLPHead` with ReLU.
            - A SegFormerImageSegmenter of keras-hub, from any preset.

            All but the last need the extra `weights`; PyTorch's files need torch.
        input_shape: Tuple `(height, width, channels)`, with None for an open height or
            width. Weights for RGB are repeated for other numbers of channels, as by
            `widen_input`. Defaults to `(None, None, 3)`.
        drop_path: Number in [0, 1). Stochastic depth: the rate at which the last
            block's residuals are dropped in training. It rises linearly from 0 at the
            first block. Defaults to `0.1`.
        name: String. Name of the model. Defaults to `"segformer_b0"`.

    Returns:
        A `Segmenter` without adapters; its `backbone` is a `MiTB0`, its `head` a
        `SegFormerHead` as wide as that in the weights. The classes have the names that
        transformers keeps in the file config.json beside the weights. If they are those
        of ADE20K or Cityscapes, they have the names and colors of `data.ADE20K` or
        `data.CITYSCAPES`.

    Raises:
        TypeError: If `weights` is none of these.
        ValueError: If an argument is out of range, if `num_classes` is missing or not
            that of the weights, if the weights can't be fetched or read, or if their
            tensors or shapes are not those of the model.
        ImportError: If a package that reads the weights is not installed.

    Example:

    ```python
    import numpy as np
    import keras_segadapter as ksa

    model = ksa.SegFormerB0(num_classes=19)  # or weights="cityscapes" for a trained one
    print(model.segment(np.zeros((60, 90, 3), "uint8")).shape)  # (60, 90)
    ```

    Source: E. Xie et al., SegFormer, NeurIPS 2021.
    """
    return _segformer(
        "b0", MiTB0, 256, num_classes, weights, input_shape, drop_path, name
    )


def SegFormerB1(
    num_classes=None,
    weights=None,
    input_shape=(None, None, 3),
    drop_path=0.1,
    name=None,
):
    """Build SegFormer-B1, with 13.5 M parameters for 150 classes.

    Example: see `SegFormerB0`.
    """
    return _segformer(
        "b1", MiTB1, 256, num_classes, weights, input_shape, drop_path, name
    )


def SegFormerB2(
    num_classes=None,
    weights=None,
    input_shape=(None, None, 3),
    drop_path=0.1,
    name=None,
):
    """Build SegFormer-B2, with 25.1 M parameters for 150 classes.

    Example: see `SegFormerB0`.
    """
    return _segformer(
        "b2", MiTB2, 768, num_classes, weights, input_shape, drop_path, name
    )


def SegFormerB3(
    num_classes=None,
    weights=None,
    input_shape=(None, None, 3),
    drop_path=0.1,
    name=None,
):
    """Build SegFormer-B3, with 45.0 M parameters for 150 classes.

    Example: see `SegFormerB0`.
    """
    return _segformer(
        "b3", MiTB3, 768, num_classes, weights, input_shape, drop_path, name
    )


def SegFormerB4(
    num_classes=None,
    weights=None,
    input_shape=(None, None, 3),
    drop_path=0.1,
    name=None,
):
    """Build SegFormer-B4, with 61.7 M parameters for 150 classes.

    Example: see `SegFormerB0`.
    """
    return _segformer(
        "b4", MiTB4, 768, num_classes, weights, input_shape, drop_path, name
    )


def SegFormerB5(
    num_classes=None,
    weights=None,
    input_shape=(None, None, 3),
    drop_path=0.1,
    name=None,
):
    """Build SegFormer-B5, with 82.3 M parameters for 150 classes.

    Example: see `SegFormerB0`.
    """
    return _segformer(
        "b5", MiTB5, 768, num_classes, weights, input_shape, drop_path, name
    )


def _segformer(
    size, build, channels, num_classes, weights, input_shape, drop_path, name
):
    """Build a SegFormer of the given size."""
    if num_classes is not None:
        num_classes = check_num_classes(num_classes)
    source, of_mit = weights, weights is None
    if isinstance(weights, str):
        of_mit = weights == "imagenet"
        resolution = "640-640" if size == "b5" else "512-512"
        if weights == "ade20k":
            source = ADE20K_WEIGHTS.format(size, resolution)
        elif weights == "cityscapes":
            source = CITYSCAPES_WEIGHTS.format(size)
    # Read first, so that a wrong file raises before a large model is built.
    encoder, decoder = ({}, {}) if of_mit else read_segformer_weights(source)
    num_classes = _num_classes(num_classes, weights, decoder)
    class_names = colors = None
    if decoder:
        class_names, colors = _names_and_colors(weights, source, num_classes)
    *sides, image_channels = check_input_shape(input_shape)
    if widen_stem(encoder, STEM, image_channels):
        backbone = widen_input(build(None, (*sides, 3), drop_path), image_channels)
    else:
        backbone = build(weights if of_mit else None, input_shape, drop_path)
    model = Segmenter(
        backbone,
        num_classes,
        adapters=False,
        head=build_head(decoder, num_classes, channels),
        class_names=class_names,
        colors=colors,
        weights_origin=None if of_mit else name_origin(source),
        name=f"segformer_{size}" if name is None else name,
    )
    if decoder:
        assign_segformer_weights(model, encoder, decoder)
    elif encoder:
        assign_mit_weights(backbone, encoder)
    return model


def _num_classes(num_classes, weights, decoder):
    """Return the number of classes that the weights and the argument agree on."""
    if not decoder:
        if num_classes is None:
            raise ValueError(
                "`num_classes` must be given unless the weights hold a decode head. "
                f"Received: num_classes=None, weights={_shown(weights)} without one"
            )
        return num_classes
    bias = decoder.get("decode_head.classifier.bias")
    if bias is None:
        return num_classes or 2  # The missing tensor will be listed.
    if bias.size < 2:
        raise ValueError(
            "The weights must be those of a model with at least two classes; a binary "
            "one has a class for the background too. Received: "
            f"weights={_shown(weights)} with {bias.size} class"
        )
    if num_classes not in (None, bias.size):
        raise ValueError(
            "`num_classes` must be None or that of the weights. For other classes, "
            "build the model with num_classes=None and call "
            "keras_segadapter.change_classes(model, class_names). Received: "
            f"num_classes={num_classes}, weights={_shown(weights)} with {bias.size} "
            "classes"
        )
    return bias.size


def _shown(weights):
    """Return a source of weights as an error shows it."""
    return repr(name_origin(weights) if isinstance(weights, keras.Model) else weights)


def _names_and_colors(weights, source, num_classes):
    """Return the names and colors of the classes of weights with a decode head."""
    known = {"ade20k": ADE20K, "cityscapes": CITYSCAPES}
    if isinstance(weights, str) and weights in known:
        names = known[weights].class_names
    else:
        names = read_class_names(source, num_classes)
    if names is None or len(names) != num_classes:
        return None, None
    for labels in known.values():
        # Sources spell a few of ADE20K's names differently. With ours, the model and
        # `data.ADE20K` agree.
        same = sum(map(operator.eq, names, labels.class_names))
        if labels.num_classes == num_classes and same > 0.9 * num_classes:
            return labels.class_names, labels.colors
    return names, None
