"""Inference: logits and labels of images of any size, evaluation, cost, and export."""

from keras_segadapter.inference.cost import CostReport, cost_report
from keras_segadapter.inference.evaluate import Evaluation, evaluate_images
from keras_segadapter.inference.export import export_model
from keras_segadapter.inference.exported import compare_exported, open_exported
from keras_segadapter.inference.predict import predict_labels, predict_logits

__all__ = [
    "CostReport",
    "Evaluation",
    "compare_exported",
    "cost_report",
    "evaluate_images",
    "export_model",
    "open_exported",
    "predict_labels",
    "predict_logits",
]
