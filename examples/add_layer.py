"""SegAdapter in a Keras model of your own, without `build_segmenter`.

    python examples/add_layer.py

The model has two stages with an adapter behind each. The adapted features go on to the
next stage, and an output of the model supervises the adapters' scores.
"""

import keras

import keras_segadapter as ksa

layers = keras.layers
num_classes = len(ksa.data.SCENE_CLASSES)

images = keras.Input((None, None, 3))
x = layers.Rescaling(1 / 255)(images)
x = layers.Conv2D(16, 4, 4, activation="relu")(x)  # stride 4
fine, fine_scores = ksa.SegAdapter(num_classes, scale_init=1e-3)(x)
x = layers.Conv2D(32, 2, 2, activation="relu")(fine)  # stride 8 sees adapted features
x = layers.Conv2D(32, 3, padding="same", activation="relu")(x)
deep, deep_scores = ksa.SegAdapter(num_classes, scale_init=1e-2)(x)

resize = ksa.ResizeLike()
coarse = layers.Add()([fine_scores, resize([deep_scores, fine_scores])])
merged = layers.Concatenate()([fine, resize([deep, fine])])
scores = layers.Conv2D(num_classes, 1)(merged)
# The loss resizes the coarse scores by itself. "mask" is resized here, so that the
# trained model predicts at the size of the image.
model = keras.Model(images, {"mask": resize([scores, images]), "coarse": coarse})

loss = ksa.SegmentationCrossentropy()
model.compile(
    optimizer=keras.optimizers.AdamW(1e-3),
    loss={"mask": loss, "coarse": loss},
    loss_weights={"mask": 1.0, "coarse": 0.4},
    metrics={"mask": [ksa.MeanIoU(num_classes)]},
)
x, y = ksa.data.make_scenes(64, size=(64, 64))
model.fit(x, {"mask": y, "coarse": y}, batch_size=8, epochs=3)
