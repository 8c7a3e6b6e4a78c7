"""The model for deployment: the same numbers from fewer and plainer layers."""

import itertools

import keras
import numpy as np
from keras import layers, ops

from keras_segadapter.adapter import SegAdapter
from keras_segadapter.graph import record
from keras_segadapter.head import MLPHead
from keras_segadapter.native import Dense, resize_bilinear
from keras_segadapter.replay import replay

# Linear but for an activation; the last kernel makes the channels of the output.
LINEAR = (layers.Dense, layers.Conv2D, layers.DepthwiseConv2D, layers.SeparableConv2D)
# Nothing at inference, yet a call each.
IDLE = (layers.Dropout, layers.SpatialDropout2D, layers.Identity)


def fold(model, name):
    """A functional model again, folded.

    A batch norm goes into the linear layer or convolution in front of it. Adapters on
    feature maps become small models of plain layers, with what is linear in them
    multiplied out, and so the head. What has nothing to fold is the same layer as in
    `model`.
    """
    norms = norms_to_fold(model)
    gone = {position for position, _ in norms.values()}
    positions = itertools.count()

    def visit(operation, *args, **kwargs):
        position = next(positions)
        if position in norms:
            return with_norm(operation, norms[position][1], args[0])
        if position in gone or type(operation) in IDLE:
            return args[0]
        if type(operation) is SegAdapter and isinstance(args[0], keras.KerasTensor):
            return as_model(folded_adapter, operation, args[0])
        if type(operation) is MLPHead:
            return folded_head(operation, args[0])
        return operation(*args, **kwargs)

    inputs = keras.Input(model.input_shape[1:], name="image")
    (outputs,), _ = replay(model, [inputs], visit)
    return keras.Model(inputs, outputs, name=name)


def norms_to_fold(model):
    """For positions of linear calls: the position and layer of the norm behind it."""
    calls, results, _ = record(model, keras.Input(model.input_shape[1:]))
    kept = {id(tensor) for tensor in results}
    operations = [call.operation for call in calls]
    readers = {}
    for position, call in enumerate(calls):
        for tensor in call.inputs:
            readers.setdefault(id(tensor), []).append(position)
    norms = {}
    for position, call in enumerate(calls):
        operation, output = call.operation, call.outputs[0]
        read_at = readers.get(id(output), [])
        if len(read_at) != 1 or id(output) in kept:
            continue
        norm = calls[read_at[0]].operation
        if (
            type(operation) in LINEAR
            and operation.activation is keras.activations.linear
            and operations.count(operation) == 1  # its name will be the new layer's
            and type(norm) is layers.BatchNormalization
            and norm.axis in (-1, len(output.shape) - 1)
            and not calls[read_at[0]].options.get("training")
        ):
            norms[position] = (read_at[0], norm)
    return norms


def with_norm(layer, norm, inputs):
    """What a linear layer and the batch norm behind it give, from one layer."""
    scale, shift = affine(norm)
    *kernels, kernel = layer.get_weights()[: -1 if layer.use_bias else None]
    bias = layer.get_weights()[-1] if layer.use_bias else 0.0
    if type(layer) is layers.DepthwiseConv2D:
        kernel = kernel * scale.reshape(kernel.shape[-2:])
    else:
        kernel = kernel * scale
    new = type(layer).from_config({**layer.get_config(), "use_bias": True})
    outputs = new(inputs)
    new.set_weights([*kernels, kernel, bias * scale + shift])
    return outputs


def as_model(folded, layer, inputs):
    """What `folded` makes of `layer`, as a model with names of its own.

    Operations without a name are counted from "add" in each process; beside those of a
    graph from a file they would clash.
    """
    own = keras.Input(inputs.shape[1:], dtype=inputs.dtype)
    return keras.Model(own, folded(layer, own), name=f"{layer.name}_folded")(inputs)


def folded_adapter(adapter, features):
    """Equations 3 to 6 from plain layers, `mu` in the last one's weights."""
    for block, (norm, attention, expansion, contraction, scale) in enumerate(
        zip(
            adapter.norms,
            adapter.attentions,
            adapter.expansions,
            adapter.contractions,
            adapter.scales,
            strict=True,
        )
    ):
        prefix = f"{adapter.name}_{block + 1}"
        x = norm(features) if adapter.normalize else features  # (B, H, W, C)
        scores = attention.classifier(x)  # (B, H, W, K)
        visual, semantic = attention.visual, attention.semantic
        gate = visual.norm(visual.pointwise(visual.depthwise(x)))
        semantic_gate = semantic.norm(semantic.pointwise(semantic.depthwise(scores)))
        if x.shape[-1] < adapter.num_classes:
            # Linear after linear: C to C instead of K to C.
            kernel, bias = _arrays(attention.classifier)
            second, second_bias = _arrays(semantic.value)
            weights = kernel @ second, bias @ second + second_bias
            value = _dense(semantic.value, weights, x, f"{prefix}_value")
        else:
            value = semantic.value(scores)
        factors = [gate, visual.value(x), semantic_gate, value]  # (B, H, W, C) each
        if adapter.compute_dtype == "float16":
            factors = [ops.cast(factor, "float32") for factor in factors]
        attended = (factors[0] * factors[1]) * (factors[2] * factors[3])
        hidden = ops.gelu(expansion(attended), approximate=False)
        kernel, bias = _arrays(contraction)
        mu = ops.convert_to_numpy(scale).astype("float64")
        update = _dense(contraction, (kernel * mu, bias * mu), hidden, f"{prefix}_out")
        features = features + ops.cast(update, features.dtype)  # (B, H, W, C)
    return (features, scores) if adapter.return_scores else features


@keras.saving.register_keras_serializable("keras_segadapter")
class FoldedHead(layers.Layer):
    """`MLPHead` at inference: its batch norms in the linear layers in front of them.

    A layer and no graph: a graph keeps all that it computes until its end, and on
    PyTorch new memory for these large maps takes longer than the arithmetic.
    """

    def __init__(self, num_classes, channels, **kwargs):
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.channels = channels
        self.classifier = Dense(num_classes, dtype=self.dtype_policy)

    def build(self, input_shape):
        self.linears, self.projections = [], []
        for i, shape in enumerate(input_shape):
            linear, projection = (
                Dense(self.channels, use_bias=bias, dtype=self.dtype_policy)
                for bias in (True, i == 0)  # one bias for the sum of the projections
            )
            linear.build(shape)
            projection.build((*shape[:-1], self.channels))
            self.linears.append(linear)
            self.projections.append(projection)
        self.classifier.build((*input_shape[0][:-1], self.channels))

    def call(self, inputs):
        _, height, width, _ = ops.shape(inputs[0])
        fused = None
        for x, linear, project in zip(
            inputs, self.linears, self.projections, strict=True
        ):
            part = project(ops.gelu(linear(x), approximate=False))  # (B, H_i, W_i, C_d)
            if fused is None:
                fused = part  # (B, H_1, W_1, C_d)
            else:
                resized = resize_bilinear(part, height, width)
                fused = fused + ops.cast(resized, part.dtype)
        return self.classifier(ops.gelu(fused, approximate=False))  # (B, H_1, W_1, K)

    def compute_output_shape(self, input_shape):
        return (*input_shape[0][:-1], self.num_classes)

    def get_config(self):
        config = super().get_config()
        config.update(num_classes=self.num_classes, channels=self.channels)
        return config


def folded_head(head, inputs):
    """What a decode head gives, from a `FoldedHead`."""
    new = FoldedHead(
        head.num_classes, head.channels, dtype=head.dtype_policy, name=head.name
    )
    outputs = new(inputs)  # (B, H_1, W_1, K)
    scale, shift = affine(head.projection_norm)
    projection = ops.convert_to_numpy(head.projection).astype("float64") * scale
    weights = np.split(projection, len(inputs))  # (C_d, C_d) each
    for i, (linear, norm) in enumerate(zip(head.linears, head.norms, strict=True)):
        stage_scale, stage_shift = affine(norm)
        new.linears[i].set_weights([_arrays(linear)[0] * stage_scale, stage_shift])
        bias = [shift] if i == 0 else []
        new.projections[i].set_weights([weights[i], *bias])
    new.classifier.set_weights(head.classifier.get_weights())
    return outputs


def affine(norm):
    """Scale and shift of a batch norm at inference, float64."""
    mean, variance = (
        ops.convert_to_numpy(value).astype("float64")
        for value in (norm.moving_mean, norm.moving_variance)
    )
    scale = 1 / np.sqrt(variance + norm.epsilon)
    if norm.scale:
        scale = scale * ops.convert_to_numpy(norm.gamma)
    shift = -mean * scale
    if norm.center:
        shift = shift + ops.convert_to_numpy(norm.beta)
    return scale, shift


def _arrays(layer):
    return [weight.astype("float64") for weight in layer.get_weights()]


def _dense(like, weights, inputs, name):
    """A Dense layer with these weights, of the precision of the layer `like`."""
    new = Dense(weights[0].shape[-1], dtype=like.dtype_policy, name=name)
    outputs = new(inputs)
    new.set_weights(weights)
    return outputs
