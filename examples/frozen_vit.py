"""Adapters and a neck on a frozen vision transformer of keras-hub.

    python examples/frozen_vit.py
    python examples/frozen_vit.py --preset hf://facebook/dinov3-vits16-pretrain-lvd1689m

Without a preset the transformer is a small DINOv3 with random weights, enough to see
that everything fits. The model is written to runs/frozen_vit.keras.
"""

import argparse
import pathlib
import sys

import keras

import keras_segadapter as ksa

try:
    import keras_hub
except ImportError:
    sys.exit("This example needs keras-hub. Install it by: pip install keras-hub")

parser = argparse.ArgumentParser()
parser.add_argument("--preset", help="a DINOv2, DINOv3 or ViT backbone of keras-hub")
preset = parser.parse_args().preset
keras.utils.set_random_seed(0)

# keras-hub's transformers take images of one size, DINOv2 and DINOv3 squares. This one
# is small and a multiple of 14 and of 16; pretrained weights want 448 or more.
shape = (112, 112, 3)
if preset:
    backbone = keras_hub.models.Backbone.from_preset(preset, image_shape=shape)
else:
    backbone = keras_hub.models.DINOV3Backbone(
        patch_size=16,
        num_layers=4,
        hidden_dim=192,
        num_heads=3,
        intermediate_dim=384,
        num_register_tokens=4,
        image_shape=shape,
    )
backbone.trainable = False

# One adapter for each fourth of the depth; class and register tokens pass by. Adapters
# see the tokens through a layer norm of their own, and the neck through the one in
# which the backbone ends.
num_classes = len(ksa.data.SCENE_CLASSES)
model = ksa.build_segmenter(
    backbone,
    num_classes,
    neck=ksa.SimpleFeaturePyramid(),  # strides 4, 8, 16 and 32 instead of 16
    head=ksa.MLPHead(num_classes, channels=64),
    class_names=ksa.data.SCENE_CLASSES,
)
images, masks = ksa.data.make_scenes(200, size=shape[:2])
model.compile(keras.optimizers.AdamW(2e-3))
history = model.fit(
    images[:160],
    masks[:160],
    batch_size=8,
    epochs=5,
    validation_data=(images[160:], masks[160:]),
)
print(f"validation mIoU: {history.history['val_mIoU'][-1]:.3f}")

pathlib.Path("runs").mkdir(exist_ok=True)
model.save("runs/frozen_vit.keras")
loaded = keras.models.load_model("runs/frozen_vit.keras")
print(f"a mask of the loaded model: {loaded.segment(images[160]).shape}")
