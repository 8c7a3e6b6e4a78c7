"""Benchmark of backbones: each is adapted, trained for one step, saved and loaded.

    python benchmarks/backbones.py                  # the rows that are missing
    python benchmarks/backbones.py --backend torch  # on one backend
    python benchmarks/backbones.py --again vit      # rows with "vit" in them again

Each row runs in its own process with a time limit, so that a crash ends only that row.
Weights are random, and nothing is downloaded. Where a published network is heavy, a
thin one of the same structure takes its place. results/backbones.json grows row by row,
and results/backbones.md is its table.
"""

import argparse
import importlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "backbones.json"
BACKENDS = ("tensorflow", "torch")
PACKAGES = ("keras", "keras-hub", "keras-cv", "numpy", *BACKENDS)
TIME_LIMIT = 600  # seconds per row
LIBRARIES = {  # module and arguments of all its backbones
    "keras.applications": (
        "keras.applications",
        {"include_top": False, "weights": None, "input_shape": (None, None, 3)},
    ),
    "keras-hub": ("keras_hub.models", {}),
    "keras-cv": ("keras_cv.models", {"include_rescaling": False}),
    "keras_segadapter": ("keras_segadapter", {}),
}


def stacks(**values):
    return {f"stackwise_{key}": value for key, value in values.items()}


# fmt: off
RESNET = (256, 512, 1024, 2048)
BASIC = (64, 128, 256, 512)
EFFICIENTNET = (24, 40, 112, 320)
HALVES = [1, 2, 2, 2]
hub_resnet = stacks(num_filters=BASIC, num_blocks=[2] * 4, num_strides=HALVES) | {
    "input_conv_filters": [64], "input_conv_kernel_sizes": [7],
    "block_type": "basic_block"}
cv_resnet = stacks(filters=BASIC, blocks=[2] * 4, strides=HALVES) | {
    "block_type": "basic_block"}
efficientnet = stacks(
    kernel_sizes=[3, 3, 5, 3, 5, 5, 3], num_repeats=[1, 2, 2, 3, 3, 4, 1],
    input_filters=[32, 16, 24, 40, 80, 112, 192], strides=[1, 2, 2, 2, 1, 2, 1],
    output_filters=[16, 24, 40, 80, 112, 192, 320], expansion_ratios=[1] + [6] * 6)
efficientnet_v2 = stacks(
    kernel_sizes=[3] * 6, num_repeats=[1, 2, 2, 3, 5, 8], strides=[1, 2, 2, 2, 1, 2],
    input_filters=[32, 16, 32, 48, 96, 112], output_filters=[16, 32, 48, 96, 112, 192],
    expansion_ratios=[1, 4, 4, 4, 6, 6],
    squeeze_and_excite_ratios=[0] * 3 + [0.25] * 3,
    block_types=["fused"] * 3 + ["unfused"] * 3)
dark = stacks(num_filters=[16, 32, 64, 128, 256], depth=[1, 2, 2, 2, 1],
              strides=[2] * 5) | {
    "stem_filters": 8, "stem_kernel_size": 3, "stem_strides": 1,
    "stem_padding": "same", "block_type": "dark_block"}
mobilenet_v3 = {
    **stacks(
        num_blocks=[2, 3, 2, 3], num_strides=[[2, 1], [2, 1, 1], [1, 1], [2, 1, 1]],
        expansion=[[72, 88], [96, 240, 240], [120, 144], [288, 576, 576]],
        num_filters=[[24] * 2, [40] * 3, [48] * 2, [96] * 3],
        kernel_size=[[3] * 2, [5] * 3, [5] * 2, [5] * 3],
        se_ratio=[[None] * 2, [0.25] * 3, [0.25] * 2, [0.25] * 3],
        activation=[["relu"] * 2] + [["hard_swish"] * n for n in (3, 2, 3)],
        padding=[[1] * 2, [2] * 3, [2] * 2, [2] * 3]),
    "output_num_filters": 1024, "last_layer_filter": 576, "depthwise_filters": 16,
    "depthwise_stride": 2, "depthwise_residual": False, "squeeze_and_excite": 0.5}
mobilenet_v5 = stacks(
    block_types=[["er"]] + [["uir", "mqa"]] * 3, num_blocks=[1, 2, 2, 2],
    num_filters=[[24], [48] * 2, [96] * 2, [192] * 2], strides=[[2]] + [[2, 1]] * 3,
    **{key: [[first]] + [[first, second]] * 3 for key, first, second in (
        ("act_layers", "relu", "relu"), ("exp_ratios", 4.0, 4.0),
        ("se_ratios", 0.0, 0.0), ("dw_kernel_sizes", 5, 5),
        ("dw_start_kernel_sizes", 3, 0), ("dw_end_kernel_sizes", 0, 0),
        ("exp_kernel_sizes", 3, 3), ("pw_kernel_sizes", 1, 1), ("num_heads", 0, 2),
        ("key_dims", 0, 8), ("value_dims", 0, 8), ("kv_strides", 1, 1),
        ("use_cpe", False, False))}) | {"use_msfa": False}
vit = {"num_layers": 4, "hidden_dim": 48, "num_heads": 3, "patch_size": 16,
       "intermediate_dim": 192, "image_shape": (64, 64, 3)}

# Library, class, variant of the class, height and width of images, arguments, channels
# of the published stages: at strides 4, 8, 16 and 32, or as {stride: channels}.
FAMILIES = [
    *[("keras.applications", name, "", size, {}, channels) for name, size, channels in (
        ("ConvNeXtTiny", 64, (96, 192, 384, 768)),
        ("DenseNet121", 64, (256, 512, 1024, 1024)),
        ("EfficientNetB0", 64, EFFICIENTNET),
        ("EfficientNetV2B0", 64, (32, 48, 112, 192)),
        ("InceptionV3", 128, (192, 288, 768, 2048)),
        ("InceptionResNetV2", 128, (192, 320, 1088, 1536)),
        ("MobileNet", 64, (128, 256, 512, 1024)),
        ("MobileNetV2", 64, (24, 32, 96, 320)),
        ("MobileNetV3Small", 64, (16, 24, 48, 96)),
        ("MobileNetV3Large", 64, (24, 40, 112, 160)),
        ("ResNet50", 64, RESNET),
        ("ResNet50V2", 64, RESNET),
        ("VGG16", 64, (256, 512, 512, 512)),
        ("Xception", 128, (128, 256, 728, 2048)))],
    # With an open size, it takes an odd map and half of it for maps of one size.
    ("keras.applications", "NASNetMobile", "", 224, {"input_shape": (224, 224, 3)},
     (44, 264, 528, 1056)),
    *[("keras-hub", f"{name}Backbone", *rest) for name, *rest in (
        ("ResNet", "18", 64, hub_resnet, BASIC),
        ("ResNet", "18 V2", 64, hub_resnet | {"use_pre_activation": True}, BASIC),
        ("ResNet", "18 vd", 64, hub_resnet | {
            "block_type": "basic_block_vd", "input_conv_filters": [32, 32, 64],
            "input_conv_kernel_sizes": [3, 3, 3]}, BASIC),
        ("DenseNet", "121", 64, stacks(num_repeats=[6, 12, 24, 16]),
         (256, 512, 1024, 1024)),
        ("EfficientNet", "B0", 64, efficientnet | stacks(
            squeeze_and_excite_ratios=[0.25] * 7, block_types=["v1"] * 7,
            width_coefficients=[1.0] * 7, depth_coefficients=[1.0] * 7), EFFICIENTNET),
        ("EfficientNet", "V2 B0", 64, efficientnet_v2 | stacks(
            width_coefficients=[1.0] * 6, depth_coefficients=[1.0] * 6),
         (32, 48, 112, 192)),
        ("MobileNet", "V3 Small", 64, mobilenet_v3, (16, 24, 48, 96)),
        ("MobileNetV5", "thin", 64, mobilenet_v5, (24, 48, 96, 192)),
        ("CSPNet", "CSPDarkNet", 64, dark | {
            "stage_type": "csp", "bottle_ratio": (0.5, 1.0), "block_ratio": (1.0, 0.5),
            "expand_ratio": (2.0, 1.0), "down_growth": True}, (32, 64, 128, 256)),
        ("CSPNet", "DarkNet", 64, dark | {"stage_type": "dark", "bottle_ratio": [0.5]},
         (32, 64, 128, 256)),
        ("CSPNet", "CSPResNet", 64, stacks(
            num_filters=[32, 64, 128, 256], depth=[3, 3, 5, 2], strides=HALVES) | {
            "stem_filters": 16, "stem_kernel_size": 7, "stem_strides": 4,
            "stem_pooling": "max", "block_type": "bottleneck_block",
            "stage_type": "csp", "bottle_ratio": [0.5], "expand_ratio": [2.0],
            "cross_linear": True}, (32, 64, 128, 256)),
        ("HGNetV2", "B0", 64, {
            "depths": [1, 1, 2, 1], "embedding_size": 16, "stem_channels": [3, 16, 16],
            "hidden_sizes": [64, 256, 512, 1024], "hidden_act": "relu",
            "use_learnable_affine_block": True,
            "stackwise_stage_filters": [
                [16, 16, 64, 1, 3, 3], [64, 32, 256, 1, 3, 3],
                [256, 64, 512, 2, 3, 5], [512, 128, 1024, 1, 3, 5]],
            "apply_downsample": [False, True, True, True],
            "use_lightweight_conv_block": [False, False, True, True]},
         (64, 256, 512, 1024)),
        ("VGG", "16", 64, stacks(num_repeats=[2, 2, 3, 3, 3],
                                 num_filters=[64, 128, 256, 512, 512]),
         (256, 512, 512, 512)),
        ("Xception", "thin", 128, stacks(
            conv_filters=[[8, 16], [32] * 2, [64] * 2, [96] * 2] + [[96] * 3] * 2 + [
                [96, 128], [192, 256]],
            pooling=[False] + [True] * 3 + [False] * 2 + [True, False]),
         (32, 64, 96, 256)),
        ("MiT", "B0", 128, {
            "layerwise_depths": [2] * 4, "num_layers": 4, "max_drop_path_rate": 0.1,
            "layerwise_num_heads": [1, 2, 5, 8], "layerwise_sr_ratios": [8, 4, 2, 1],
            "layerwise_patch_sizes": [7, 3, 3, 3], "layerwise_strides": [4, 2, 2, 2],
            "hidden_dims": [32, 64, 160, 256], "image_shape": (128, 128, 3)},
         (32, 64, 160, 256)),
        ("SwinTransformer", "thin", 128, {
            "image_shape": (128, 128, 3), "embed_dim": 24, "depths": (2, 2, 2, 2),
            "num_heads": (1, 2, 4, 8), "window_size": 4}, (24, 48, 96, 192)),
        ("ViT", "thin", 64, {k: v for k, v in vit.items() if k != "intermediate_dim"}
         | {"mlp_dim": 192}, {16: 48}),
        ("DeiT", "thin", 64, vit, {16: 48}),
        ("DINOV2", "thin", 112, vit | {
            "patch_size": 14, "image_shape": (112, 112, 3)}, {14: 48}),
        ("DINOV3", "thin", 64, vit, {16: 48}),
        ("ViTDet", "thin, SAM's encoder", 128, {
            "hidden_size": 48, "num_layers": 4, "intermediate_dim": 192, "num_heads": 3,
            "global_attention_layer_indices": [1, 3], "image_shape": (128, 128, 3),
            "num_output_channels": 64, "window_size": 4}, {16: 64}))],
    *[("keras-hub", f"{name}VisionEncoder", "thin", 64, vit, {16: 48})
      for name in ("CLIP", "MetaCLIP2", "SigLIP")],
    *[("keras-cv", f"{name}Backbone", *rest) for name, *rest in (
        ("ResNet", "18", 64, cv_resnet, BASIC),
        # The first block of a stage widens and its last one has the stride, so the maps
        # of a stride end with the channels of the next stage.
        ("ResNetV2", "18", 64, cv_resnet, (128, 256, 512, 512)),
        ("EfficientNetLite", "B0", 64, efficientnet | {
            "width_coefficient": 1.0, "depth_coefficient": 1.0}, EFFICIENTNET),
        ("CSPDarkNet", "tiny", 64, stacks(
            channels=[48, 96, 192, 384], depth=[1, 3, 3, 1]), (48, 96, 192, 384)),
        ("MobileNetV3", "Small", 64, stacks(
            expansion=[1, 72 / 16, 88 / 24, 4, 6, 6, 3, 3, 6, 6, 6],
            filters=[16, 24, 24, 40, 40, 40, 48, 48, 96, 96, 96],
            kernel_size=[3] * 3 + [5] * 8, stride=[2, 2, 1, 2, 1, 1, 1, 1, 2, 1, 1],
            se_ratio=[0.25, None, None] + [0.25] * 8,
            activation=["relu"] * 3 + ["hard_swish"] * 8), (16, 24, 48, 96)))],
    ("keras_segadapter", "MiTB0", "", 64, {}, (32, 64, 160, 256)),
]
# fmt: on
REASONS = {
    "NASNetMobile": "a cell reads the two before it: only the end is on every path; "
    "on torch Keras has none",
    "DINOV2 thin": "keras-hub stores trained position embeddings interpolated; frozen, "
    "the loaded model is exact",
    "DeiT thin": "its blocks return None beside the tokens, which no symbolic call may",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--backend", choices=BACKENDS, help="the backend to run on (default: both)")
    add("--again", metavar="NAME", help="run rows with NAME in them again")
    add("--child", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        return try_family(*FAMILIES[args.child])
    results = {
        "command": "python benchmarks/backbones.py",
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "rows": [],
    }
    if RESULTS.exists():
        old = json.loads(RESULTS.read_text())
        if old["versions"] == results["versions"]:  # Otherwise it is out of date.
            names = [(family[0], family_name(family)) for family in FAMILIES]
            results["rows"] = [
                row for row in old["rows"] if (row["library"], row["family"]) in names
            ]
    for backend in [args.backend] if args.backend else BACKENDS:
        for index, family in enumerate(FAMILIES):
            row = find_row(results["rows"], family, backend)
            key = " ".join((family[0], family_name(family), backend))
            if row and (args.again is None or args.again.lower() not in key.lower()):
                continue
            if row:
                results["rows"].remove(row)
            row = {"library": family[0], "family": family_name(family)}
            row |= {"backend": backend} | run_child(index, backend)
            results["rows"].append(row)
            write(results)
            print(f"{key}: {row['error'] or 'passes'}", flush=True)
    write(results)
    print(table(results["rows"]).splitlines()[0])


def write(results):
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    RESULTS.with_suffix(".md").write_text(table(results["rows"]))


def family_name(family):
    return f"{family[1].removesuffix('Backbone')} {family[2]}".strip()


def find_row(rows, family, backend):
    key = (family[0], family_name(family), backend)
    keys = [(row["library"], row["family"], row["backend"]) for row in rows]
    return rows[keys.index(key)] if key in keys else None


def run_child(index, backend):
    """Try one family in another process, and return its row, the last line printed."""
    start = time.perf_counter()
    environment = {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment |= {"OMP_NUM_THREADS": "1", "TF_NUM_INTRAOP_THREADS": "1"}
    try:
        done = subprocess.run(
            [sys.executable, __file__, "--child", str(index)],
            env=os.environ | environment,
            capture_output=True,
            timeout=TIME_LIMIT,
        )
        end = done.returncode and f"the process ended with code {done.returncode}"
    except subprocess.TimeoutExpired as late:
        done, end = late, f"no end within {TIME_LIMIT} s"
    printed = (done.stdout or b"").decode().splitlines()
    lines = [line for line in printed if line.startswith("{")]
    row = json.loads(lines[-1]) if lines else {"error": "start"}
    if end:
        row["error"] = f"{row['error']}: {end}"
    return row | {"seconds": round(time.perf_counter() - start, 1)}


def try_family(library, name, _, size, arguments, published):
    """Try one family, and print its row before each step, which its `error` names."""
    row = {"stages": [], "strides": [], "channels": [], "step": None, "saved": False}
    faults = []

    def begin(step):
        row["error"] = step
        print(json.dumps(row), flush=True)

    try:
        begin("build the backbone")
        import keras
        import numpy as np

        import keras_segadapter as ksa

        keras.utils.set_random_seed(0)
        module, shared = LIBRARIES[library]
        build = getattr(importlib.import_module(module), name)
        backbone = build(**shared | arguments)
        begin("find_stages")
        stages = ksa.find_stages(backbone)
        row["stages"] = [stage.name for stage in stages]
        row["strides"] = [stage.stride for stage in stages]
        row["channels"] = [stage.channels for stage in stages]
        if not as_published(row["strides"], row["channels"], published):
            faults.append(f"find_stages: the published stages are {published}")
        begin("build_segmenter")
        model = ksa.build_segmenter(backbone, num_classes=5)
        begin("fit")
        random = np.random.default_rng(0)
        images = random.integers(0, 256, (2, size, size, 3), "uint8")
        masks = random.integers(0, 5, (2, size, size), "uint8")
        model.compile()
        loss = model.fit(images, masks, batch_size=2, verbose=0).history["loss"][0]
        if np.isfinite(loss):
            row["step"] = round(loss, 4)
        else:
            faults.append(f"fit: the loss is {loss}")
        begin("predict")
        logits = model.predict(images, verbose=0)
        with tempfile.TemporaryDirectory() as folder:
            begin("save")
            model.save(f"{folder}/model.keras")
            begin("load_model")
            loaded = keras.models.load_model(f"{folder}/model.keras")
        difference = np.abs(loaded.predict(images, verbose=0) - logits).max()
        row["saved"] = bool(difference <= 1e-5 * max(1, np.abs(logits).max()))
        if not row["saved"]:
            faults.append(f"load_model: predictions differ by {difference:.1e}")
    except Exception as error:
        sentence = re.sub(r"\x1b\[\d+m", "", " ".join(str(error).split()))
        faults.append(f"{row['error']}: {type(error).__name__}: {sentence[:300]}")
    row["error"] = "; ".join(faults) or None
    print(json.dumps(row), flush=True)


def as_published(strides, channels, published):
    found = list(zip(strides, channels, strict=True))
    if isinstance(published, dict):  # A plain transformer may have many taps.
        return list(dict.fromkeys(found)) == list(published.items())
    return found == list(zip((4, 8, 16, 32), published, strict=True))


def table(rows):
    passed = sum(row["error"] is None for row in rows)
    lines = [
        f"{passed} of {len(rows)} pass",
        "",
        "| library | family | strides | channels | TensorFlow | torch | why it fails |",
        "|---|---|---|---|---|---|---|",
    ]
    for family in FAMILIES:
        pair = [find_row(rows, family, backend) for backend in BACKENDS]
        known = [row for row in pair if row]
        cells = [family[0], family_name(family)]
        for key in ("strides", "channels"):
            lists = [", ".join(map(str, row.get(key, []))) for row in known]
            cells.append(max(lists, key=len, default=""))
        for row in pair:
            cells.append(
                "not run" if not row else "fails" if row["error"] else "passes"
            )
        errors = list(dict.fromkeys(row["error"] for row in known if row["error"]))
        reason = REASONS.get(family_name(family)) if errors else None
        cells.append("; ".join([reason] if reason else errors))
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
