"""SegAdapter in a vision transformer, on tokens instead of feature maps.

    python examples/vision_transformer.py

The model is a small functional ViT with a class token, two registers and a SegAdapter
behind every second block. The adapters change only the patch tokens, which the decode
head gets as feature maps. The last lines do the same with `build_segmenter`.
"""

import keras
from keras import ops

import keras_segadapter as ksa

layers = keras.layers
num_classes = len(ksa.data.SCENE_CLASSES)
SIZE, PATCH, WIDTH, DEPTH = 64, 8, 48, 4


class LeadingTokens(layers.Layer):
    """Put learned tokens before the patches: (B, N, C) -> (B, count + N, C)."""

    def __init__(self, count, **kwargs):
        super().__init__(**kwargs)
        self.count = count

    def build(self, input_shape):
        self.tokens = self.add_weight(shape=(1, self.count, input_shape[-1]))

    def call(self, inputs):
        tokens = ops.tile(self.tokens, (ops.shape(inputs)[0], 1, 1))
        return ops.concatenate([tokens, inputs], axis=1)

    def compute_output_shape(self, input_shape):
        batch, count, channels = input_shape
        return (batch, self.count + count, channels)


def block(tokens, index):
    x = layers.LayerNormalization()(tokens)
    tokens = layers.Add()([tokens, layers.MultiHeadAttention(4, WIDTH // 4)(x, x)])
    x = layers.LayerNormalization()(tokens)
    x = layers.Dense(WIDTH)(layers.Dense(4 * WIDTH, activation="gelu")(x))
    return layers.Add(name=f"block_{index}")([tokens, x])


def embed(image):
    x = layers.Rescaling(1 / 127.5, -1.0)(image)
    patches = layers.Conv2D(WIDTH, PATCH, PATCH, name="patches")(x)  # (B, 8, 8, C)
    # This stands in for position embeddings: a convolution sees where the zeros of
    # the padding are.
    patches = patches + layers.DepthwiseConv2D(3, padding="same")(patches)
    tokens = layers.Reshape((-1, WIDTH))(patches)  # (B, 64, C)
    return patches, LeadingTokens(3)(tokens)  # (B, 3 + 64, C): class token, registers


# By hand: an adapter takes the tokens and a map whose height and width are their grid.
image = keras.Input((SIZE, SIZE, 3))
patches, tokens = embed(image)
stages, scores = [], []
for index in range(1, DEPTH + 1):
    tokens = block(tokens, index)
    if index % 2 == 0:
        adapter = ksa.SegAdapter(num_classes, scale_init=10.0 ** (index / 2 - 4))
        tokens, stage_scores = adapter([tokens, patches])  # (B, 67, C), (B, 8, 8, K)
        stages.append(ksa.TokensToMap()([tokens, patches]))  # (B, 8, 8, C)
        scores.append(stage_scores)
resize = ksa.ResizeLike()
model = keras.Model(
    image,
    {
        "mask": resize([ksa.MLPHead(num_classes, channels=64)(stages), image]),
        "coarse": resize([layers.Add()(scores), image]),
    },
)
loss = ksa.SegmentationCrossentropy()
model.compile(
    optimizer=keras.optimizers.AdamW(1e-3),
    loss={"mask": loss, "coarse": loss},
    loss_weights={"mask": 1.0, "coarse": 0.4},
    metrics={"mask": [ksa.MeanIoU(num_classes)]},
)
x, y = ksa.data.make_scenes(64, size=(SIZE, SIZE))
model.fit(x, {"mask": y, "coarse": y}, batch_size=8, epochs=3)

# With one call, on a backbone that knows nothing of adapters.
image = keras.Input((SIZE, SIZE, 3))
_, tokens = embed(image)
for index in range(1, DEPTH + 1):
    tokens = block(tokens, index)
segmenter = ksa.build_segmenter(
    keras.Model(image, tokens), num_classes, taps=["block_2", "block_4"]
)
segmenter.compile(keras.optimizers.AdamW(1e-3))
segmenter.fit(x, y, batch_size=8, epochs=3)
