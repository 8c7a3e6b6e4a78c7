"""The descriptions that `segadapter --help` prints."""

# What follows the name of a command, and what it makes.
COMMANDS = {
    "inspect": ("DATA", "what a folder holds, before training"),
    "train": ("DATA", "a model from images and masks"),
    "predict": ("MODEL INPUT...", "masks and overlays of photos"),
    "evaluate": ("MODEL DATA", "how good a model's masks are, class by class"),
    "export": ("MODEL OUT", "a file that runs without Keras"),
}

PROGRAM = """\
Segment images with models that have adapters in their backbone.

  segadapter predict SegFormerB0:ade20k photo.jpg
  segadapter inspect FOLDER
  segadapter train FOLDER --backbone MobileNetV3Small --size 256 256
  segadapter predict runs/FOLDER/best.keras photo.jpg

The environment chooses Keras' backend: KERAS_BACKEND=torch segadapter train FOLDER.
"""

DATA = """\
DATA is one of:
  a folder      with images and masks in the usual places (images/ and masks/, train/
                and trainannot/, a_image.png and a_mask.png, ...), or ADE20K,
                Cityscapes, Pascal VOC or COCO-Stuff as unpacked
  a .txt file   with a pair of files, or the name of an image, per line
  a .json file  with annotations in COCO's format
  tfds:NAME     a dataset of tensorflow-datasets, such as tfds:oxford_iiit_pet
  scenes        small built-in scenes, to try things out
"""

DESCRIPTIONS = {
    "inspect": """\
Look at images and masks before training: how many there are, their sizes, the share of
each class, and the files that are faulty (the exit code is then 1).

  segadapter inspect FOLDER
  segadapter inspect FOLDER --split train --out overlays.png
""",
    "train": """\
Train a model. The data is inspected first, and faults stop the command before work is
lost on it.

  segadapter train scenes
  segadapter train FOLDER --backbone MobileNetV3Small --size 256 256
  segadapter train CITYSCAPES --backbone MiTB0 --crop 512 512 --batch 4

These are written to the folder --out: model.keras after the last epoch, best.keras with
the best validation mIoU so far, history.csv, curves.png and, in pictures/, predictions
after each epoch. After a stop, the same command with --resume goes on.
""",
    "predict": """\
Segment photos of any size. NAME_mask.png holds the class ids (in 16 bits if there are
more than 256 classes), NAME_overlay.png the photo in the colors of the classes.

  segadapter predict SegFormerB0:ade20k photo.jpg
  segadapter predict runs/FOLDER/best.keras photo.jpg
  segadapter predict model.onnx PHOTOS --out masks

With a .keras file, large photos are predicted in tiles, which bounds the memory.
""",
    "evaluate": """\
Measure a model on images and masks of any sizes: IoU and accuracy of each class and
their means, counted as MMSegmentation does.

  segadapter evaluate runs/FOLDER/best.keras FOLDER
  segadapter evaluate best.keras CITYSCAPES --crop 1024 --stride 768 --flip
""",
    "export": """\
Write a model to a file that runs without Keras, and compare the two. The ending of OUT
chooses the format: .onnx, .tflite (LiteRT), .xml (OpenVINO), or none for a folder with
a TensorFlow SavedModel.

  segadapter export runs/FOLDER/best.keras model.onnx
  segadapter export best.keras model.tflite --size 512 512 --int8 PHOTOS
""",
}
