"""What a training needs besides losses: optimizers, backups and pictures."""

from keras_segadapter.training.optimizers import AdamW
from keras_segadapter.training.schedules import WarmupPoly
from keras_segadapter.training.paper_optimizer import paper_optimizer
from keras_segadapter.training.pictures import TrainingPictures

__all__ = ["AdamW", "TrainingPictures", "WarmupPoly", "paper_optimizer"]
