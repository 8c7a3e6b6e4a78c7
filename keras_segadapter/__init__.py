"""SegAdapter for Keras 3: semantic context spliced into a pretrained backbone.

The public names, in the order of the data's way through a model.
"""

from keras_segadapter.version import __version__
from keras_segadapter.backbones.mit import MiTB0, MiTB1, MiTB2, MiTB3, MiTB4, MiTB5
from keras_segadapter.native import ResizeLike
from keras_segadapter.tokens import TokensToMap
from keras_segadapter.attention import HighOrderSpatialAttention, SegAttention
from keras_segadapter.adapter import SegAdapter
from keras_segadapter.head import MLPHead
from keras_segadapter.stages import Stage, find_stages
from keras_segadapter.training.losses import SegmentationCrossentropy
from keras_segadapter.training.mask_loss import MaskLoss
from keras_segadapter.training.metrics import MeanIoU
from keras_segadapter.training.optimizers import AdamW
from keras_segadapter.training.schedules import WarmupPoly
from keras_segadapter.inference import predict_logits
from keras_segadapter.segmenter import Segmenter, build_segmenter
from keras_segadapter.training.recipe import paper_optimizer
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
)
from keras_segadapter.cost import CostReport, cost_report
from keras_segadapter import data, pictures
from keras_segadapter.training.watching import TrainingPictures
from keras_segadapter.evaluation import Evaluation, evaluate

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
    "CostReport",
    "Evaluation",
    "HighOrderSpatialAttention",
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
    "SegmentationCrossentropy",
    "Segmenter",
    "Stage",
    "TokensToMap",
    "TrainingPictures",
    "WarmupPoly",
    "__version__",
    "build_segmenter",
    "cost_report",
    "data",
    "evaluate",
    "find_stages",
    "paper_optimizer",
    "pictures",
    "predict_logits",
]
