"""SegAdapter for Keras 3: semantic context spliced into a pretrained backbone.

The public names, in the order in which a reader meets them: each room imports only what
stands above it.
"""

try:
    import keras as _keras  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError(
        "Keras needs a backend. Install one, for example with `pip install "
        "keras-segadapter[tensorflow]`, or choose the one that you have with the "
        "environment variable KERAS_BACKEND: tensorflow (the default), jax or torch. "
        f"Received: {error}"
    ) from error

from keras_segadapter.version import __version__
from keras_segadapter.layers import (
    HighOrderSpatialAttention,
    MLPHead,
    ResizeLike,
    SegAdapter,
    SegAttention,
    SegFormerHead,
    SimpleFeaturePyramid,
    TokensToMap,
)
from keras_segadapter.graph import Stage, find_stages
from keras_segadapter.backbones import (
    ConvNeXtAtto,
    ConvNeXtBase,
    ConvNeXtFemto,
    ConvNeXtLarge,
    ConvNeXtNano,
    ConvNeXtPico,
    ConvNeXtSmall,
    ConvNeXtTiny,
    ConvNeXtXLarge,
    MiTB0,
    MiTB1,
    MiTB2,
    MiTB3,
    MiTB4,
    MiTB5,
    widen_input,
)
from keras_segadapter.lora import enable_lora
from keras_segadapter import data, visualization
from keras_segadapter.losses import (
    LovaszSoftmax,
    MaskLoss,
    SegmentationCrossentropy,
    balanced_class_weight,
)
from keras_segadapter.metrics import MeanIoU
from keras_segadapter.inference import (
    CostReport,
    Evaluation,
    compare_exported,
    cost_report,
    evaluate_images,
    export_model,
    open_exported,
    predict_labels,
    predict_logits,
)
from keras_segadapter.model_card import model_card
from keras_segadapter.training import (
    AdamW,
    TrainingPictures,
    WarmupPoly,
    paper_optimizer,
)
from keras_segadapter.segmenter import Segmenter, build_segmenter
from keras_segadapter.transfer import add_adapters, change_classes
from keras_segadapter.models import (
    AdaptConvNeXtBase,
    AdaptConvNeXtLarge,
    AdaptConvNeXtSmall,
    AdaptConvNeXtTiny,
    AdaptConvNeXtXLarge,
    AdaptMiTB0,
    AdaptMiTB1,
    AdaptMiTB2,
    AdaptMiTB3,
    AdaptMiTB4,
    AdaptMiTB5,
    SegFormerB0,
    SegFormerB1,
    SegFormerB2,
    SegFormerB3,
    SegFormerB4,
    SegFormerB5,
)

__all__ = [
    "AdamW",
    "AdaptConvNeXtBase",
    "AdaptConvNeXtLarge",
    "AdaptConvNeXtSmall",
    "AdaptConvNeXtTiny",
    "AdaptConvNeXtXLarge",
    "AdaptMiTB0",
    "AdaptMiTB1",
    "AdaptMiTB2",
    "AdaptMiTB3",
    "AdaptMiTB4",
    "AdaptMiTB5",
    "ConvNeXtAtto",
    "ConvNeXtBase",
    "ConvNeXtFemto",
    "ConvNeXtLarge",
    "ConvNeXtNano",
    "ConvNeXtPico",
    "ConvNeXtSmall",
    "ConvNeXtTiny",
    "ConvNeXtXLarge",
    "CostReport",
    "Evaluation",
    "HighOrderSpatialAttention",
    "LovaszSoftmax",
    "MLPHead",
    "MaskLoss",
    "MeanIoU",
    "MiTB0",
    "MiTB1",
    "MiTB2",
    "MiTB3",
    "MiTB4",
    "MiTB5",
    "ResizeLike",
    "SegAdapter",
    "SegAttention",
    "SegFormerB0",
    "SegFormerB1",
    "SegFormerB2",
    "SegFormerB3",
    "SegFormerB4",
    "SegFormerB5",
    "SegFormerHead",
    "SegmentationCrossentropy",
    "Segmenter",
    "SimpleFeaturePyramid",
    "Stage",
    "TokensToMap",
    "TrainingPictures",
    "WarmupPoly",
    "__version__",
    "add_adapters",
    "balanced_class_weight",
    "build_segmenter",
    "change_classes",
    "compare_exported",
    "cost_report",
    "data",
    "enable_lora",
    "evaluate_images",
    "export_model",
    "find_stages",
    "model_card",
    "open_exported",
    "paper_optimizer",
    "predict_labels",
    "predict_logits",
    "visualization",
    "widen_input",
]
