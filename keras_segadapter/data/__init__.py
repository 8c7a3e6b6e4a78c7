"""Images and masks to learn from: drawn scenes, folders and tensorflow-datasets."""

from keras_segadapter.data.augmentation import Augmentation
from keras_segadapter.data.coco import open_coco
from keras_segadapter.data.folders import FolderDataset
from keras_segadapter.data.inspection import inspect_folder
from keras_segadapter.data.labels import (
    ADE20K,
    BINARY,
    CITYSCAPES,
    COCO_STUFF,
    OXFORD_PETS,
    PASCAL_VOC,
    Labels,
)
from keras_segadapter.data.opening import open_folder
from keras_segadapter.data.report import FolderReport
from keras_segadapter.data.scenes import SCENE_CLASSES, make_scenes
from keras_segadapter.data.tfds import open_tfds

__all__ = [
    "ADE20K",
    "BINARY",
    "CITYSCAPES",
    "COCO_STUFF",
    "OXFORD_PETS",
    "PASCAL_VOC",
    "SCENE_CLASSES",
    "Augmentation",
    "FolderDataset",
    "FolderReport",
    "Labels",
    "inspect_folder",
    "make_scenes",
    "open_coco",
    "open_folder",
    "open_tfds",
]
