"""Pictures to learn from: drawn scenes, and folders of images and masks."""

from keras_segadapter.data.folders import FolderDataset, check_folder
from keras_segadapter.data.scenes import SCENE_CLASSES, make_scenes

__all__ = ["SCENE_CLASSES", "FolderDataset", "check_folder", "make_scenes"]
