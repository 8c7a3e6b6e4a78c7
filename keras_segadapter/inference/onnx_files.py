"""What the ONNX files of converters need until runtimes take them."""

import types

import numpy as np


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


def pool_without_the_batch(path):
    """Let max pooling in an ONNX file of jax2onnx (0.17) leave out the batch.

    It pools over batch, height, width and channels, and runtimes over three axes at
    most. Here the batch takes the place of ONNX's channels.
    """
    import onnx
    from onnx import helper

    file, nodes = onnx.load(path), []
    for node in file.graph.node:
        options = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type != "MaxPool" or len(options["kernel_shape"]) != 4:
            nodes.append(node)
            continue
        for name, values in options.items():
            if isinstance(values, list):  # per axis; `pads` in front and then behind
                axes = np.reshape(values, (-1, 4))
                options[name] = axes[:, 1:].flatten().tolist()
        axis, inner, outer = (f"{node.name}_{part}" for part in ("axis", "in", "out"))
        tensor = helper.make_tensor(axis, onnx.TensorProto.INT64, [1], [0])
        file.graph.initializer.append(tensor)
        nodes += [
            helper.make_node("Squeeze", [node.input[0], axis], [inner]),
            helper.make_node("MaxPool", [inner], [outer], node.name, **options),
            helper.make_node("Unsqueeze", [outer, axis], node.output),
        ]
    del file.graph.node[:]
    file.graph.node.extend(nodes)
    onnx.save(file, path)


def resize_to_whole_pixels(path):
    """Let resizes in an ONNX file of tf2onnx (1.17) end at the sizes that they have.

    It divides these in float32: 3 pixels times 7 / 3 are 6.9999, and runtimes make 6.
    """
    import onnx
    from onnx import numpy_helper

    file = onnx.load(path)
    scales = {node.input[2] for node in file.graph.node if node.op_type == "Resize"}
    for tensor in file.graph.initializer:
        if tensor.name in scales:
            values = numpy_helper.to_array(tensor)
            more = np.where(values % 1, values * np.float32(1 + 1e-6), values)
            tensor.CopyFrom(numpy_helper.from_array(more, tensor.name))
    onnx.save(file, path)


def quantize_onnx(path, images):
    """Replace an ONNX file by one that computes in 8 bits."""
    from onnxruntime import quantization

    # Constants are folded, so that slices of the head's projection count as weights and
    # are stored in 8 bits.
    quantization.quant_pre_process(path, path, skip_symbolic_shape=True)
    feeds = iter([{"image": image} for image in images])
    quantization.quantize_static(
        path,
        path,
        types.SimpleNamespace(get_next=lambda: next(feeds, None)),
        per_channel=True,
        op_types_to_quantize=["Conv", "MatMul", "Gemm"],  # nearly all of the work
    )
