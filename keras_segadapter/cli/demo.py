"""`segadapter demo`: a page that shows what a model makes of a picture."""

import html
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np

import keras_segadapter as ksa
from keras_segadapter.cli.arguments import add_command, add_model, integer
from keras_segadapter.cli.models import open_model
from keras_segadapter.cli.predict import class_shares
from keras_segadapter.data.reading import read_image
from keras_segadapter.data.resizing import resize_image, resize_mask
from keras_segadapter.extras import import_extra
from keras_segadapter.inference.views import Views, heat
from keras_segadapter.visualization import colorize, overlay, palette

MEGABYTES, MEGAPIXELS = 32, 50  # of a picture, at most
SHOWN, VIEWED = 1280, 512  # pixels of the longer side, of pictures and of stages

DESCRIPTION = """\
Serve a page that shows what a model makes of a picture: its mask, the classes in it,
and what the stages of the model see.

  segadapter demo SegFormerB0:ade20k
  segadapter demo runs/FOLDER/best.keras --port 8000

The page is for this machine alone unless --host says otherwise, and needs the extra
demo: pip install keras-segadapter[demo].
"""
_LIMITS = f"""\
Pictures of up to {MEGABYTES} MB and {MEGAPIXELS} megapixels are segmented at their size
and shown here with at most {SHOWN} pixels a side. They lie in a temporary folder until
the demo ends, an hour at most.
"""
_STAGES = f"""\
**side**: the classes that the adapter of a stage sees. **X**, **Y**: the size of the
features before and behind the adapter, from black to yellow. **s4** is the stage of
stride 4. Stages see a copy of the picture with at most {VIEWED} pixels a side.
"""
_EXPORTED = "Exported files hold no stages: open the .keras file to see them."


def add_demo(commands):
    """Add the command `demo`."""
    add = add_command(
        commands, demo, "MODEL", "a page to try a model on pictures", DESCRIPTION
    )
    add_model(add, "an exported model, ")
    add(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="serve at this address; at 0.0.0.0 the page is open to everybody who "
        "reaches this machine (default: 127.0.0.1, for this machine alone)",
    )
    add(
        "--port",
        type=integer(1),
        metavar="N",
        help="serve at this port (default: the first one free from 7860 on)",
    )


def demo(args):
    """Serve the page of a model until Ctrl-C."""
    # Else Gradio would keep runs in the browser, and tell its makers about its use.
    os.environ["GRADIO_RUN_HISTORY"] = "False"
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import_extra("gradio", "The demo")  # It raises before work is lost.
    model = open_model(args.model)
    # A process that is told to end by another one deletes its folder too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="segadapter_demo_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # of uploads, and of what is shown
        page = build_demo(model, f"segadapter demo {args.model}")
        try:
            _, url, _ = page.launch(
                server_name=args.host,
                server_port=args.port,
                max_file_size=f"{MEGABYTES}mb",
                share=False,
                ssr_mode=False,
                show_error=True,
                enable_monitoring=False,
                footer_links=[],
                quiet=True,
                prevent_thread_lock=True,
            )
            print(f"open {url} in a browser; Ctrl-C ends the demo", flush=True)
            threading.Event().wait()
        except OSError as error:
            raise ValueError(
                "The page can't be served here. Choose another --port, or leave it and "
                f"--host out. Received: --host {args.host} --port {args.port}"
            ) from error
        finally:
            page.close(verbose=False)


def build_demo(model, title="segadapter demo"):
    """Build a page that shows what a model makes of a picture.

    It shows an overlay, the mask, and the classes with their colors and shares; of a
    `Segmenter` also the coarse map and maps of its stages, as `TrainingPictures` does.
    Call `launch()` to serve it.

    Args:
        model: A `Segmenter`, or what `open_exported` returns.
        title: String. Title of the page. Defaults to `"segadapter demo"`.

    Returns:
        A `gradio.Blocks`.

    Raises:
        ImportError: If Gradio is not installed.

    Example:

    ```python
    import keras
    import keras_segadapter as ksa
    from keras_segadapter.cli.demo import build_demo

    backbone = keras.Sequential(
        [keras.Input((None, None, 3)), keras.layers.Conv2D(8, 4, 4)]
    )
    page = build_demo(ksa.build_segmenter(backbone, num_classes=8))
    # page.launch()
    ```
    """
    gradio = import_extra("gradio", "The demo")
    views = Views(model) if hasattr(model, "stages") else None
    titles = [] if views is None else views.titles
    shown = {}

    def segment(picture):
        path = picture["path"] if picture else None
        try:
            seen = look_at(path, model, views)
        except (ImportError, OSError, TypeError, ValueError) as error:
            text = str(error).replace(str(path), Path(str(path)).name)
            raise gradio.Error(
                html.escape(text, quote=False), duration=None, print_exception=False
            ) from error
        return {place: seen[title] for title, place in shown.items()}

    def show(title, min_width=320):
        shown[title] = gradio.Image(
            label=title,
            min_width=min_width,
            interactive=False,
            format="png",
            buttons=["download", "fullscreen"],  # By default there is one to share.
        )

    # Every ten minutes, files that are older than an hour are deleted.
    with gradio.Blocks(title=title, delete_cache=(600, 3600)) as page:
        gradio.Markdown(f"# {title}")
        with gradio.Row():
            with gradio.Column(min_width=320):
                picture = gradio.Image(
                    label="picture", sources=["upload", "clipboard"], buttons=[]
                )
                button = gradio.Button("Segment", variant="primary")
                gradio.Markdown(_LIMITS)
            with gradio.Column(min_width=320):
                show("overlay")
            with gradio.Column(min_width=200, scale=0):
                shown["classes"] = gradio.HTML(max_height=480)
        with gradio.Row():
            show("mask")
            if "coarse map" in titles:
                show("coarse map")
        for kind in ("side", "X", "Y"):
            if stages := [name for name in titles if name.split()[0] == kind]:
                with gradio.Row():
                    for name in stages:
                        show(name, min_width=140)
        gradio.Markdown(_EXPORTED if views is None else _STAGES)
        outputs = [*shown.values()]
        button.click(
            segment,
            picture,
            outputs,
            preprocess=False,  # The library reads the file as it was uploaded.
            concurrency_limit=1,
            show_progress_on=shown["overlay"],
        )
        # What is shown of one picture does not stay beside another; by the browser, so
        # that it comes before the answer to a click.
        nothing = f"() => Array({len(outputs)}).fill(null)"
        picture.change(None, outputs=outputs, js=nothing, api_visibility="private")
    return page


def look_at(path, model, views=None):
    """Return what the page shows of a picture, by title.

    Args:
        path: Path of the picture's file, or None.
        model: A `Segmenter`, or what `open_exported` returns.
        views: `Views` of the model, or None.

    Returns:
        Dict of "classes" as HTML and of pictures, uint8 `(h, w, 3)`: "overlay", "mask",
        and the maps of the views by their titles.

    Raises:
        ValueError: If there is no picture, if it is too large, or if it can't be read.
    """
    if path is None:
        raise ValueError("There is no picture. Choose one first.")
    image = read_image(path, model.channels if views is None else model.input_shape[-1])
    height, width, _ = image.shape
    if height * width > MEGAPIXELS * 1e6:
        raise ValueError(
            f"A picture must have at most {MEGAPIXELS} megapixels here. Make it "
            "smaller, or use `segadapter predict`. Received: a picture of height "
            f"{height} and width {width}"
        )
    labels = model(image) if views is None else ksa.predict_labels(model, image)
    shares = class_shares(labels)
    colors = model.colors
    if colors is None:
        colors = palette(model.num_classes or len(shares))
    ids, features = {"mask": labels[None]}, {}
    if views is not None:
        small = resize_image(image, _within(VIEWED, height, width))  # (h, w, C)
        more, features = views(small[None])  # (1, h, w) by title
        ids |= more
    image = resize_image(image, _within(SHOWN, height, width))
    ids = {title: resize_mask(one, image.shape[:2]) for title, (one,) in ids.items()}
    return {
        "overlay": overlay(image, ids["mask"], colors=colors),
        "classes": _list_classes(shares, model.class_names, colors),
        **{title: colorize(one, colors=colors) for title, one in ids.items()},
        **{title: heat(values) for title, (values,) in features.items()},
    }


def _list_classes(shares, names, colors):
    """Return a table of the classes that occur, the largest first, as HTML."""
    # Gradio would draw lines around rows and cells.
    bare = 'style="border: none; padding: 2px 8px; white-space: nowrap; '
    table = ""
    for i in (-shares).argsort(stable=True)[: np.count_nonzero(shares)]:
        name = html.escape(names[i]) if names else f"class {i}"
        share = f"{shares[i]:.1%}" if shares[i] >= 0.001 else "&lt;0.1%"
        table += (
            f'<tr {bare}"><td {bare}background: #{bytes(colors[i]).hex()}"></td>'
            f'<td {bare}white-space: normal; overflow-wrap: anywhere">{name}</td>'
            f'<td {bare}text-align: right">{share}</td></tr>'
        )
    return f'<table {bare}">{table}</table>'


def _within(most, height, width):
    """Return a height and width with at most so many pixels a side."""
    scale = min(1, most / max(height, width))
    return max(round(scale * height), 1), max(round(scale * width), 1)
