"""Inference: logits and labels of images of any size, evaluation, and cost."""

from keras_segadapter.inference.cost import CostReport, cost_report
from keras_segadapter.inference.evaluate import Evaluation, evaluate_images
from keras_segadapter.inference.predict import predict_labels, predict_logits

__all__ = [
    "CostReport",
    "Evaluation",
    "cost_report",
    "evaluate_images",
    "predict_labels",
    "predict_logits",
]
