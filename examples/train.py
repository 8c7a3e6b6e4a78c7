"""Train a segmenter on built-in scenes, with Keras' own compile, fit and save.

    python examples/train.py

The model and, after each epoch, pictures of a few predictions are written to
runs/train. For photographs of your own there is `segadapter train FOLDER`; in code,
`ksa.data.open_folder(FOLDER, "train")` and `"val"` take the place of the arrays.
"""

import keras
from keras import layers

import keras_segadapter as ksa


def residual_backbone(widths=(32, 64, 96, 128)):
    """Build a residual net with strides 4 to 32, small enough to train from scratch."""

    def convolution(x, width, stride):
        x = layers.Conv2D(width, 3, stride, padding="same", use_bias=False)(x)
        return layers.BatchNormalization(momentum=0.9)(x)

    inputs = keras.Input((None, None, 3))
    x = layers.ReLU()(convolution(inputs, widths[0], 2))
    for width in widths:
        x = shortcut = layers.ReLU()(convolution(x, width, 2))
        x = layers.ReLU()(convolution(x, width, 1))
        x = layers.ReLU()(convolution(x, width, 1) + shortcut)
    return keras.Model(inputs, x)


keras.utils.set_random_seed(0)
images, masks = ksa.data.make_scenes(480)  # uint8 (480, 96, 96, 3), ids (480, 96, 96)

# Any backbone will do, such as keras.applications.MobileNetV3Small(include_top=False,
# input_shape=(None, None, 3)), which has a normalization of its own.
model = ksa.build_segmenter(
    residual_backbone(),
    num_classes=len(ksa.data.SCENE_CLASSES),
    preprocessing=layers.Rescaling(1 / 127.5, -1),  # pixels 0..255 to -1..1
    class_names=ksa.data.SCENE_CLASSES,
)
# 16 epochs of 50 batches: the rate rises for 80 of them and then falls to 0.
rate = keras.optimizers.schedules.CosineDecay(
    2e-5, decay_steps=720, warmup_target=2e-3, warmup_steps=80
)
model.compile(ksa.AdamW(rate))
pictures = ksa.TrainingPictures(images[400:404], masks[400:404], "runs/train/pictures")
history = model.fit(
    images[:400],
    masks[:400],
    batch_size=8,
    epochs=16,
    validation_data=(images[400:], masks[400:]),
    callbacks=[pictures],
)
print(f"validation mIoU: {history.history['val_mIoU'][-1]:.3f}")
model.save("runs/train/model.keras")
