"""Optional packages, and the extras of this package that bring them."""

import importlib

# Of a module: what to install. What export_model writes with is in the extra "export".
_INSTALL = {
    "gradio": "keras-segadapter[demo]",
    "huggingface_hub": "keras-segadapter[weights]",
    "keras_cv": "keras-segadapter[keras-cv]",
    "keras_hub": "keras-segadapter[keras-hub]",
    "litert_torch": "litert-torch",  # in no extra, since it holds other packages back
    "pycocotools": "keras-segadapter[coco]",
    "safetensors": "keras-segadapter[weights]",
    "tensorboard": "keras-segadapter[tensorboard]",
    "tensorflow": "keras-segadapter[tensorflow]",
    "tensorflow_datasets": "keras-segadapter[data,tensorflow]",
    "tifffile": "keras-segadapter[tiff]",
    "torch": "keras-segadapter[torch]",
}


def import_extra(module, purpose):
    """Import an optional module and return it.

    Args:
        module: String. Its name.
        purpose: String. What needs it, the start of the message of the error.

    Raises:
        ImportError: If it can't be imported; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise ImportError(
            f"{purpose} needs the package {package}. Install it with `pip install "
            f"{_INSTALL.get(package, 'keras-segadapter[export]')}`. Received: {error}"
        ) from error
