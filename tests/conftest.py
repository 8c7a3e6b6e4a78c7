"""Settings and fixtures that several test files share."""

import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Tests on JAX mostly wait for its compiler, whose results are kept for the next run.
cache = Path(__file__).parents[1] / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# Functions run only once or twice, so XLA's optimizations would take longer than they
# save, as do its threads for such small ones.
flags = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
os.environ.setdefault("XLA_FLAGS", flags)
# Hypothesis caches its tables of characters, even without a database of examples.
os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(cache.parent / "hypothesis"))

import hypothesis
import keras
import pytest

# For `compile(run_eagerly=EAGER)` in tests of a few steps that are not about graphs.
# TensorFlow's tracing takes longer than such steps; JAX would compile each operation.
EAGER = keras.backend.backend() != "jax"


def pytest_addoption(parser):
    parser.addoption(
        "--property-examples",
        type=int,
        default=10 if EAGER else 2,  # each shape is compiled on JAX
        help="number of examples of each property test (tests/test_properties.py)",
    )


def pytest_configure(config):
    hypothesis.settings.register_profile(
        "segadapter",
        max_examples=config.getoption("--property-examples"),
        derandomize=True,  # the same examples in each run
        database=None,
        deadline=None,
        phases=set(hypothesis.Phase) - {hypothesis.Phase.explain},  # which is slow
    )
    hypothesis.settings.load_profile("segadapter")


@pytest.fixture(autouse=True)
def seed():
    keras.utils.set_random_seed(0)


@pytest.fixture(scope="session")
def tiny_backbone():
    """Return a function that builds a residual net with a block at strides 4, 8, ..."""

    def build(channels=(4, 6), size=(None, None)):
        inputs = keras.Input((*size, 3))
        x = inputs
        for index, width in enumerate(channels):
            stride = 4 if index == 0 else 2
            reduce = keras.layers.Conv2D(
                width, 3, stride, padding="same", name=f"reduce_{index + 1}"
            )
            x = reduce(x)
            branch = keras.layers.BatchNormalization()(x)
            branch = keras.layers.Conv2D(width, 1, activation="relu")(branch)
            x = x + branch
        return keras.Model(inputs, x, name="tiny")

    return build


@pytest.fixture
def channels_first():
    keras.config.set_image_data_format("channels_first")
    yield
    keras.config.set_image_data_format("channels_last")


@pytest.fixture
def hub(monkeypatch):
    """Return a function that serves files as the Hub does and lists the requests."""
    package = pytest.importorskip("huggingface_hub")
    asked = []

    def serve(files):
        def download(name, file, revision):
            asked.append((f"{name}@{revision}" if revision else name, file))
            served = files.get(file, package.errors.EntryNotFoundError(file))
            if isinstance(served, Exception):
                raise served
            return str(served)

        monkeypatch.setattr(package, "hf_hub_download", download)
        return asked

    return serve
