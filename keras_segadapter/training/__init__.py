"""Training: optimizers, schedules, backups and pictures."""

from keras_segadapter.training.optimizers import AdamW
from keras_segadapter.training.paper_optimizer import paper_optimizer
from keras_segadapter.training.pictures import TrainingPictures
from keras_segadapter.training.schedules import WarmupPoly

__all__ = ["AdamW", "TrainingPictures", "WarmupPoly", "paper_optimizer"]
