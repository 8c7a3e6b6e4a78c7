"""Threads share a model, also with a training."""

import threading

import keras
import numpy as np
import pytest

import keras_segadapter as ksa
from keras_segadapter.inference.threads import InferenceModel

K, THREADS = 3, 8
RANDOM = np.random.default_rng(0)
IMAGES = [RANDOM.integers(0, 256, (side, 24, 3)).astype("uint8") for side in (16, 24)]

PREDICTIONS = {
    "segment": lambda model, image: model.segment(image),
    "predict_logits": lambda model, image: ksa.predict_logits(model, image),
    "predict_labels": lambda model, image: ksa.predict_labels(
        model, image, tile=16, overlap=4
    ),
    "predict_on_batch": lambda model, image: model.predict_on_batch(image[None]),
    "for_inference": lambda model, image: model.for_inference().predict_on_batch(
        image[None]
    ),
}


@pytest.fixture
def model():
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 4, 4)(inputs)
    adapter = ksa.SegAdapter(K, kernel_size=3, scale_init=0.1)
    return ksa.build_segmenter(
        keras.Model(inputs, x), K, adapters=[adapter], head=ksa.MLPHead(K, 8)
    )


def ask(model, predict, calls):
    """Predict in several threads; return what they got and what they raised."""
    found, raised = [], []

    def work(start):
        try:
            for index in range(start, start + calls):
                which = index % len(IMAGES)
                found.append((which, predict(model, IMAGES[which])))
        except Exception as error:
            raised.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found, raised


def check(model, predict, expected, calls=3):
    """Assert that all threads get what one thread got before."""
    found, raised = ask(model, predict, calls)
    assert not raised
    assert len(found) == THREADS * calls
    for which, result in found:
        np.testing.assert_allclose(result, expected[which], atol=1e-5)


# Meaning


@pytest.mark.integration
@pytest.mark.parametrize("name", PREDICTIONS)
def test_threads_predict_as_one_does(model, name):
    predict = PREDICTIONS[name]
    before = [np.array(weight) for weight in model.get_weights()]
    # The first calls compile, which must be safe as well.
    _, raised = ask(model, predict, calls=2)
    assert not raised
    expected = [predict(model, image) for image in IMAGES]
    check(model, predict, expected)
    for weight, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, old)


@pytest.mark.slow
@pytest.mark.parametrize("during", ["fit", "evaluate", "predict"])
def test_threads_predict_beside_a_trainer(model, during):
    # Nothing is learned, so predictions must not change.
    for layer in [*model.head.norms, model.head.projection_norm]:
        layer.trainable = False
    model.compile(keras.optimizers.SGD(0.0))
    images = RANDOM.integers(0, 256, (8, 16, 24, 3)).astype("uint8")
    masks = RANDOM.integers(0, K, (8, 16, 24))
    predict = PREDICTIONS["segment"]
    expected = [predict(model, image) for image in IMAGES]
    raised = []

    def run():
        try:
            for _ in range(2):
                if during == "fit":
                    data = (images, masks)
                    model.fit(*data, 1, 4, verbose=0, validation_data=data)
                elif during == "evaluate":
                    model.evaluate(images, masks, batch_size=1, verbose=0)
                else:
                    model.predict(images, batch_size=1, verbose=0)
        except Exception as error:
            raised.append(error)

    trainer = threading.Thread(target=run)
    trainer.start()
    rounds = 0
    while trainer.is_alive():
        check(model, predict, expected)
        rounds += 1
    trainer.join()
    assert rounds and not raised
    check(model, predict, expected)


@pytest.mark.integration
def test_callbacks_see_the_weights_of_the_epoch_that_ends(model):
    model.compile(keras.optimizers.SGD(0.5))
    images = RANDOM.integers(0, 256, (2, 16, 24, 3)).astype("uint8")
    masks = RANDOM.integers(0, K, (2, 16, 24))
    seen = []

    def note(epoch, logs):
        seen.append(ksa.predict_logits(model, images[0]))

    callback = keras.callbacks.LambdaCallback(on_epoch_end=note)
    model.fit(images, masks, epochs=2, verbose=0, callbacks=[callback])
    last = ksa.predict_logits(model, images[0])
    np.testing.assert_allclose(seen[1], last, atol=1e-5)
    assert np.abs(seen[1] - seen[0]).max() > 1e-3


# Edges


def test_a_fit_that_fails_leaves_the_model_usable(model):
    model.compile()
    images = np.zeros((2, 16, 24, 3), "uint8")
    masks = np.zeros((2, 16, 24), "uint8")

    def fail(epoch, logs):
        raise KeyError("stop")

    callback = keras.callbacks.LambdaCallback(on_epoch_begin=fail)
    with pytest.raises(KeyError, match="stop"):
        model.fit(images, masks, verbose=0, callbacks=[callback])
    model.set_weights([np.zeros_like(weight) for weight in model.get_weights()])
    assert not ksa.predict_logits(model, images[0]).any()


def test_layers_that_are_random_at_inference_draw_new_numbers():
    class Noise(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.seed = keras.random.SeedGenerator(0)

        def call(self, inputs):
            return inputs + keras.random.normal(keras.ops.shape(inputs), seed=self.seed)

    inputs = keras.Input((8, 8, 3))
    model = InferenceModel(inputs, Noise()(inputs))
    zeros = np.zeros((1, 8, 8, 3), "float32")
    one, other = (model.predict_on_batch(zeros) for _ in range(2))
    assert np.abs(one - other).max() > 0.1


def test_errors_of_the_model_are_raised(model):
    with pytest.raises(Exception, match=r"shape|channel|dimension|axis|size"):
        model.predict_on_batch(np.zeros((1, 16, 24, 5), "float32"))
