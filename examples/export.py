"""Export a saved model, so that it runs without Keras.

    python examples/export.py MODEL.keras OUT

The ending of OUT chooses the format: .onnx, .tflite (LiteRT), .xml (OpenVINO), or no
ending for a folder with a TensorFlow SavedModel. The exported model takes RGB images in
0..255, float32 (B, H, W, 3), whose height and width are any multiples of the model's
deepest stride. It returns logits (B, H, W, K). After the export it is run in its own
runtime and compared with Keras.
"""

import argparse
import os
import tempfile
import types
from pathlib import Path

import keras
import numpy as np
from PIL import Image, ImageOps

import keras_segadapter as ksa

BACKEND = keras.backend.backend()
BACKENDS = {".onnx": "tensorflow, torch, jax", ".tflite": "tensorflow, torch"}
BACKENDS |= {".xml": BACKENDS[".onnx"], "": "tensorflow, jax"}


def export(model, out, size=(None, None), labels=False, photos=()):
    """Write a Segmenter to `out`, as int8 if `photos` (1, H, W, 3) are given."""
    if out.suffix not in BACKENDS:
        raise ValueError(
            "OUT must end with .onnx, .tflite or .xml (OpenVINO), or have no ending "
            f"(SavedModel). Received: OUT={out}"
        )
    if BACKEND not in BACKENDS[out.suffix]:
        raise ValueError(
            f"This format can't be written on {BACKEND}. Set KERAS_BACKEND=tensorflow, "
            f"where the same .keras file loads. Received: OUT={out}"
        )
    if (BACKEND, out.suffix) == ("torch", ".tflite") and (photos or None in size):
        raise ValueError(
            "On torch, LiteRT needs a fixed size and has no int8. Pass --size H W and "
            "no --int8, or set KERAS_BACKEND=tensorflow, where the same .keras file "
            f"loads. Received: OUT={out}"
        )
    if photos and not out.suffix:
        raise ValueError(
            f"A SavedModel has no int8. Leave --int8 out. Received: OUT={out}"
        )
    if out.suffix == ".xml":
        import openvino

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            export(model, path, size, labels, photos)
            converted = openvino.convert_model(path)
        openvino.save_model(converted, out, compress_to_fp16=False)
        return
    # tf2onnx, LiteRT and OpenVINO do not support the bitcast in Keras' argmax, and
    # TensorFlow 2.21 does not support JAX's top_k.
    argmax = (BACKEND, out.suffix) == ("jax", "")
    plain = model.for_inference(labels=labels and argmax)
    if labels and not argmax:
        _, ids = keras.ops.top_k(plain.output, 1)  # (B, H, W, 1)
        dtype = "uint8" if model.num_classes <= 256 else "int32"
        ids = keras.ops.cast(keras.ops.squeeze(ids, -1), dtype)  # (B, H, W)
        plain = keras.Model(plain.input, ids)
    shape = (None if None in size else 1, *size, 3)
    spec = keras.InputSpec(shape=shape, dtype="float32", name="image")
    if out.suffix == ".onnx":
        write_onnx(plain, spec, out, deepest_stride(model))
        if photos:
            quantize_onnx(out, photos)
        return
    options = {}
    if out.suffix:
        options["format"] = "litert"
    elif BACKEND == "jax":  # which can't trace the gradient of open sizes
        options["jax2tf_kwargs"] = {"with_gradient": False}
    if photos:
        import tensorflow as tf

        options["optimizations"] = [tf.lite.Optimize.DEFAULT]
        options["representative_dataset"] = lambda: ([photo] for photo in photos)
    plain.export(out, input_signature=[spec], **options)


def deepest_stride(model):
    return max(stage.stride for stage in model.stages)


def write_onnx(plain, spec, out, stride):
    import onnx

    if BACKEND == "torch":
        import torch

        shape, axes = spec.shape, None
        if None in shape:  # Keras' own export would make it fixed.
            sides = {1: "height", 2: "width"}
            axes = {axis: stride * torch.export.Dim(sides[axis]) for axis in sides}
            axes = (({0: torch.export.Dim("batch"), **axes},),)
            shape = (2, 4 * stride, 6 * stride, 3)
        image = keras.ops.zeros(shape)
        names = {"input_names": ["image"], "dynamic_shapes": axes}
        torch.onnx.export(plain.eval(), (image,), dynamo=True, **names).save(out)
    else:
        if BACKEND == "jax" and None in spec.shape:
            raise ValueError(
                "On JAX, ONNX needs a fixed size. Pass --size H W, or set "
                "KERAS_BACKEND=tensorflow or torch, where the same .keras file loads. "
                f"Received: OUT={out}"
            )
        if BACKEND == "tensorflow":
            teach_erfc()
        plain.export(out, format="onnx", input_signature=[spec], opset_version=18)
    file = onnx.load(out)
    onnx.helper.set_model_props(file, {"stride": str(stride)})  # for predict.py
    onnx.save(file, out)


def teach_erfc():
    """Teach tf2onnx 1.17 Erfc, with which TensorFlow 2.21 computes GELU."""
    from tf2onnx.handler import tf_op

    @tf_op("Erfc")
    class Erfc:
        @classmethod
        def version_9(cls, graph, node, **kwargs):
            erf = graph.make_node("Erf", node.input).output[0]
            one = graph.make_const(f"{node.name}_one", np.float32(1)).output[0]
            like = {"shapes": node.output_shapes, "dtypes": node.output_dtypes}
            graph.remove_node(node.name)
            graph.make_node("Sub", [one, erf], outputs=node.output, **like)


def quantize_onnx(path, photos):
    from onnxruntime import quantization

    # Constants are folded, so that slices of the head's projection count as weights and
    # are stored in 8 bits.
    quantization.quant_pre_process(path, path, skip_symbolic_shape=True)
    feeds = iter([{"image": photo} for photo in photos])
    quantization.quantize_static(
        path,
        path,
        types.SimpleNamespace(get_next=lambda: next(feeds, None)),
        per_channel=True,
        op_types_to_quantize=["Conv", "MatMul", "Gemm"],  # nearly all of the work
    )


def open_artifact(path):
    """Return a function that runs an exported file in its runtime on images."""
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path)
        return lambda images: session.run(None, {"image": images})[0]
    if path.suffix == ".xml":
        import openvino

        # By default OpenVINO computes in bfloat16 on CPUs that can.
        exact = {"INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino.compile_model(path, "CPU", exact)
        return lambda images: compiled(images)[0]
    if path.suffix == ".tflite":
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(str(path), num_threads=os.cpu_count())
        runner = interpreter.get_signature_runner()
        (name,) = runner.get_input_details()  # "image" only on TensorFlow
        return lambda images: next(iter(runner(**{name: images}).values()))
    import tensorflow as tf

    loaded = tf.saved_model.load(path)
    return lambda images: loaded.serve(images).numpy()


def load_photos(folder, size, stride):
    photos = []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in (".jpg", ".jpeg", ".png"):
            with Image.open(path) as file:
                photo = ImageOps.exif_transpose(file).convert("RGB")
            height, width = size
            if None in size:
                height, width = (max(x // stride, 1) * stride for x in photo.size[::-1])
            photos.append(np.asarray(photo.resize((width, height)), "float32")[None])
    if not photos:
        raise ValueError(
            "The folder must hold .jpg or .png photos, but there are none. Received: "
            f"--int8 {folder}"
        )
    return photos


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help="the .keras file to export")
    add("out", type=Path, metavar="OUT", help="the file or folder to write")
    add(
        "--size",
        type=int,
        nargs=2,
        default=(None, None),
        metavar=("H", "W"),
        help="take images of this size only (default: any size)",
    )
    add(
        "--labels",
        action="store_true",
        help="return class ids (B, H, W) instead of logits",
    )
    add(
        "--int8",
        type=Path,
        metavar="FOLDER",
        help="compute in 8 bits, with the ranges of values that the photos in FOLDER "
        "lead to; a hundred photos are plenty",
    )
    args = parser.parse_args()

    model = keras.models.load_model(args.model)
    size = args.size if None in model.input_shape[1:3] else model.input_shape[1:3]
    stride = deepest_stride(model)
    photos = load_photos(args.int8, size, stride) if args.int8 else ()
    export(model, args.out, size, args.labels, photos)
    print(f"wrote {args.out}")

    if photos:
        image = photos[0]
    else:
        side = (8 * stride, 8 * stride) if None in size else size
        image = ksa.data.make_scenes(1, size=side)[0].astype("float32")
    got = np.asarray(open_artifact(args.out)(image))
    want = model.predict_on_batch(image)
    if not args.labels:
        error = np.abs(got - want).max() / np.abs(want).max()
        print(f"logits differ from Keras' by at most {error:.1e} of the largest logit")
        got = got.argmax(-1)
    share = (got == want.argmax(-1)).mean()
    print(f"class ids agree with Keras' on {share:.2%} of the pixels")


if __name__ == "__main__":
    main()
