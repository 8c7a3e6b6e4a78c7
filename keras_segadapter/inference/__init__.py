"""From images of any size to logits, scores by class, and what a model costs."""

from keras_segadapter.inference.predict import predict_logits
from keras_segadapter.inference.evaluate import Evaluation, evaluate_images
from keras_segadapter.inference.cost import CostReport, cost_report

__all__ = [
    "CostReport",
    "Evaluation",
    "cost_report",
    "evaluate_images",
    "predict_logits",
]
