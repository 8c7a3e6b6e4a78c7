"""Networks of this package and of others, and the calls that benchmarks time."""


def images_and_masks(batch, size, classes):
    """Return random pixels in 0..255 and class ids."""
    import numpy as np

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, size, size, 3)).astype("float32")
    return images, rng.integers(0, classes, (batch, size, size), "int32")


def inference(model, images, on, xla=False):
    """Return a function from images to logits of their size, of a `Segmenter`."""
    import keras

    if hasattr(model, "for_inference"):
        model = model.for_inference()
    images = keras.ops.convert_to_tensor(images)
    # On a GPU kernels run on while Python does; copying the last value waits for them.
    if on == "torch":
        return without_gradients(lambda: model(images)[:, -1:, -1:].cpu())
    if on == "tensorflow":
        import tensorflow as tf

        function = tf.function(model, reduce_retracing=True, jit_compile=xla)
        return lambda: function(images)[:, -1:, -1:].numpy()
    import jax

    function = jax.jit(lambda x: model(x))
    return lambda: function(images).block_until_ready()


def without_gradients(call):
    import torch

    def run():
        with torch.inference_mode():
            return call()

    return run


def channels_first(images):
    """Return images as torch's networks take them: (B, 3, H, W), in 0..1."""
    import torch

    return torch.tensor(images / 255).permute(0, 3, 1, 2).contiguous()


# segmentation_models.pytorch


def smp(architecture, encoder, classes):
    """Build one of its networks, whose logits have the size of the image."""
    import segmentation_models_pytorch

    build = getattr(segmentation_models_pytorch, architecture)
    return build(encoder, encoder_weights=None, classes=classes)


def smp_step(network, images, masks, device="cpu", bfloat16=False):
    """Return a function that makes one training step: cross-entropy and AdamW.

    As with `train_on_batch`, images and masks go to the device in each step, and the
    loss comes back.
    """
    import torch

    pixels, masks = channels_first(images), torch.tensor(masks).long()
    network = network.to(device).train()
    optimizer = torch.optim.AdamW(network.parameters(), 6e-5, weight_decay=0.01)

    def step():
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            logits = network(pixels.to(device))
        loss = torch.nn.functional.cross_entropy(
            logits.float(), masks.to(device), ignore_index=255
        )
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def torch_inference(network, images, device="cpu", bfloat16=False):
    """Return a function from images to logits, of a network of torch alone."""
    import torch

    network, pixels = network.eval(), channels_first(images).to(device)

    def run():
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            logits = network(pixels)
        return logits[..., -1:, -1:].cpu()

    return without_gradients(run)


# transformers and keras-hub


def transformers_network(name, classes):
    """Build SegFormer-B0 or UPerNet-ConvNeXt-T, with a resize to the image's size.

    The resize is left out of a name that ends in "1/4 size".
    """
    import torch
    import transformers

    if name.startswith("SegFormer"):
        config = transformers.SegformerConfig(num_labels=classes)
        network = transformers.SegformerForSemanticSegmentation(config)
    else:
        backbone = transformers.ConvNextConfig(
            depths=[3, 3, 9, 3],
            hidden_sizes=[96, 192, 384, 768],
            out_features=["stage1", "stage2", "stage3", "stage4"],
        )
        config = transformers.UperNetConfig(
            backbone_config=backbone, num_labels=classes, use_auxiliary_head=False
        )
        network = transformers.UperNetForSemanticSegmentation(config)

    class Resized(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, pixels):
            logits = self.network(pixels).logits
            if name.endswith("1/4 size"):
                return logits
            return torch.nn.functional.interpolate(
                logits, size=pixels.shape[-2:], mode="bilinear", align_corners=False
            )

    return Resized().eval()


def keras_hub_segformer(size, classes):
    import keras_hub

    encoder = keras_hub.models.MiTBackbone(
        image_shape=(size, size, 3),
        layerwise_depths=[2, 2, 2, 2],
        num_layers=4,
        layerwise_num_heads=[1, 2, 5, 8],
        layerwise_sr_ratios=[8, 4, 2, 1],
        max_drop_path_rate=0.1,
        layerwise_patch_sizes=[7, 3, 3, 3],
        layerwise_strides=[4, 2, 2, 2],
        hidden_dims=[32, 64, 160, 256],
    )
    backbone = keras_hub.models.SegFormerBackbone(
        image_encoder=encoder, projection_filters=256
    )
    return keras_hub.models.SegFormerImageSegmenter(backbone, num_classes=classes)
