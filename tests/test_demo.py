"""Tests of `segadapter demo`: what the page shows, how it is served, what it keeps."""

import contextlib
import html
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

import keras_segadapter as ksa
from keras_segadapter.cli import demo as module
from keras_segadapter.cli import main
from keras_segadapter.cli.demo import build_demo, look_at
from keras_segadapter.cli.parser import parse
from keras_segadapter.inference.views import Views, heat
from keras_segadapter.visualization import colorize, overlay, palette

NAMES = ("field", "wood", "<b>lake</b>")
COLORS = np.array([(0, 200, 0), (0, 80, 40), (20, 40, 220)], "uint8")
STAGES = [f"{kind} {key}" for kind in ("side", "X", "Y") for key in ("s4", "s8")]


@pytest.fixture
def scene(tmp_path):
    """Return the path of a picture whose sides are no multiples of the strides."""
    path = tmp_path / "scene.png"
    Image.fromarray(ksa.data.make_scenes(1, size=(45, 70))[0][0]).save(path)
    return path


@pytest.fixture(scope="module")
def model(tiny_backbone):
    keras.utils.set_random_seed(0)
    return ksa.build_segmenter(tiny_backbone(), 3, class_names=NAMES, colors=COLORS)


@pytest.fixture(scope="module")
def views(model):
    return Views(model)


def classes_of(table):
    """Return names, colors and shares that a table of classes lists."""
    pattern = r"background: #(\w+)\"></td><td[^>]*>(.*?)</td><td[^>]*>(.*?)</td>"
    return [
        (name, tuple(bytes.fromhex(color)), share)
        for color, name, share in re.findall(pattern, table)
    ]


# Meaning


def test_the_page_shows_what_the_library_says(model, views, scene):
    image = np.asarray(Image.open(scene))
    seen = look_at(scene, model, views)
    assert set(seen) == {
        *("classes", "overlay", "mask", "prediction", "coarse map"),
        *STAGES,
    }
    for title in set(seen) - {"classes"}:
        assert seen[title].dtype == "uint8" and seen[title].shape == (45, 70, 3), title
    labels = model.segment(image)
    np.testing.assert_array_equal(seen["mask"], colorize(labels, colors=COLORS))
    mixed = overlay(image, labels, colors=COLORS)
    np.testing.assert_array_equal(seen["overlay"], mixed)
    ids, features = views(image[None])
    for title, maps in ids.items():
        np.testing.assert_array_equal(seen[title], colorize(maps[0], colors=COLORS))
    for title, maps in features.items():
        np.testing.assert_array_equal(seen[title], heat(maps[0]))

    ids, pixels = np.unique(labels, return_counts=True)
    escaped = ("field", "wood", "&lt;b&gt;lake&lt;/b&gt;")
    order = sorted(zip(-pixels, ids, strict=True))
    assert classes_of(seen["classes"]) == [
        (escaped[i], tuple(COLORS[i]), f"{-count / labels.size:.1%}")
        for count, i in order
    ]


def test_shares_sum_to_a_hundred_and_tiny_ones_are_marked():
    shares = np.array([0.25, 0, 0.7496, 0.0004])
    listed = classes_of(module._list_classes(shares, None, palette(4)))
    assert [name for name, _, _ in listed] == ["class 2", "class 0", "class 3"]
    assert [share for _, _, share in listed] == ["75.0%", "25.0%", "&lt;0.1%"]
    assert [color for _, color, _ in listed] == [
        tuple(palette(4)[i].tolist()) for i in (2, 0, 3)
    ]


def test_a_large_picture_is_segmented_at_its_size_and_shown_smaller(
    model, views, tmp_path, monkeypatch
):
    monkeypatch.setattr(module, "SHOWN", 40)
    monkeypatch.setattr(module, "VIEWED", 16)
    image = ksa.data.make_scenes(1, size=(80, 120))[0][0]
    Image.fromarray(image).save(tmp_path / "large.png")
    seen = look_at(tmp_path / "large.png", model, views)
    assert seen["overlay"].shape == seen["mask"].shape == (27, 40, 3)
    assert seen["coarse map"].shape == seen["side s4"].shape == (27, 40, 3)
    assert seen["X s8"].shape == (11, 16, 3)
    labels = model.segment(image)
    shares = [f"{share:.1%}" for share in np.sort(np.bincount(labels.ravel()) / 9600)]
    listed = [share for _, _, share in classes_of(seen["classes"])]
    assert listed[::-1] == [share for share in shares if share != "0.0%"]


# Contract


def test_the_command_serves_this_machine_alone():
    args = parse(["demo", "model.keras"])
    assert (args.host, args.port) == ("127.0.0.1", None)


@pytest.mark.integration
@pytest.mark.parametrize(
    "options, titles",
    [
        (dict(), ["overlay", "mask", "coarse map", *STAGES]),
        (dict(adapters=False), ["overlay", "mask", "X s4", "X s8"]),
    ],
    ids=["adapters", "none"],
)
def test_the_page_of_a_model(tiny_backbone, scene, options, titles):
    gradio = pytest.importorskip("gradio")
    page = build_demo(ksa.build_segmenter(tiny_backbone(), 3, **options), "name")
    event, clearing = page.fns.values()
    assert event.concurrency_limit == 1
    assert page.title == "name" and page.delete_cache
    shown = [one.label for one in event.outputs if isinstance(one, gradio.Image)]
    assert shown == titles
    assert not any("share" in one.buttons for one in event.outputs[:1])
    seen = event.fn({"path": str(scene)})
    assert set(seen) == set(event.outputs)
    # The browser alone takes all of it away with the picture.
    assert clearing.fn is None and clearing.outputs == event.outputs


@pytest.mark.integration
def test_the_page_of_an_exported_file(scene):
    gradio = pytest.importorskip("gradio")

    def run(images):
        return np.eye(3, dtype="float32")[images[..., 0].astype(int) % 3]

    model = ksa.inference.exported.ExportedModel(run, 3, None, num_classes=None)
    page = build_demo(model)
    event, _ = page.fns.values()
    shown = [one.label for one in event.outputs if isinstance(one, gradio.Image)]
    assert shown == ["overlay", "mask"]
    texts = [one.value for one in page.blocks.values() if hasattr(one, "value")]
    assert module._EXPORTED in texts
    seen = event.fn({"path": str(scene)})
    labels = np.asarray(Image.open(scene))[..., 0] % 3
    np.testing.assert_array_equal(
        seen[event.outputs[0]],
        overlay(np.asarray(Image.open(scene)), labels, colors=palette(3)),
    )


# The command, which says of each address that it asks for something. Shells make
# commands in the background, such as a run of the tests, ignore Ctrl-C.
WATCHED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
def watch(event, args):
    if event in ("socket.connect", "socket.getaddrinfo"):
        print("asks", args[1] if event[7:] == "connect" else args[:2], file=sys.stderr)
sys.addaudithook(watch)
from keras_segadapter.cli import main
sys.exit(main())
"""


@contextlib.contextmanager
def served(model, folder, stop=signal.SIGINT):
    """Run the command as a process, and stop it with Ctrl-C or another signal.

    Yields:
        The address of the page, and the file with what the process says of errors.
    """
    model.save(folder / "model.keras")
    (folder / "temporary").mkdir()
    errors = folder / "errors"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", WATCHED, "demo", "model.keras"]
    own = {"TMPDIR": str(folder / "temporary"), "NO_PROXY": "127.0.0.1"}
    backend = {"KERAS_BACKEND": keras.backend.backend()}
    with (
        errors.open("w") as stderr,
        subprocess.Popen(
            [*command, "--port", str(port)],
            cwd=folder,
            env={**os.environ, **backend, **own},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        ) as process,
    ):
        try:
            url = f"http://127.0.0.1:{port}/"
            said = process.stdout.readline()
            assert said == f"open {url} in a browser; Ctrl-C ends the demo\n"
            yield url, errors
        finally:
            process.send_signal(stop)
            try:
                code = process.wait(60)
            finally:
                process.kill()
    if stop == signal.SIGINT:
        assert errors.read_text().endswith("segadapter: stopped by Ctrl-C.\n")
    assert code == 128 + stop
    assert "KeyboardInterrupt" not in errors.read_text()
    asked = re.findall(r"^asks \('(.*?)',", errors.read_text(), re.MULTILINE)
    assert set(asked) == {"127.0.0.1"}
    assert not [*folder.glob("temporary/segadapter_demo_*")]


@pytest.mark.integration
def test_the_command_serves_a_page(model, scene, tmp_path):
    client = pytest.importorskip("gradio_client")
    httpx = pytest.importorskip("httpx")
    with served(model, tmp_path) as (url, errors):
        asked = client.Client(url, verbose=False, download_files=tmp_path / "files")
        found = asked.predict(client.handle_file(scene), api_name="/segment")
        assert len(found) == 4 + len(STAGES)
        labels = model.segment(np.asarray(Image.open(scene)))
        with Image.open(found[2]) as mask:
            np.testing.assert_array_equal(mask, colorize(labels, colors=COLORS))
        assert len(classes_of(found[1])) == len(np.unique(labels))
        # What is kept until the end lies in one folder.
        assert [*tmp_path.glob("temporary/segadapter_demo_*/**/scene.png")]
        written = {path.name for path in tmp_path.iterdir()}
        assert written == {"model.keras", "errors", "temporary", "files", "scene.png"}

        with pytest.raises(client.exceptions.AppError, match="There is no picture"):
            asked.predict(None, api_name="/segment")
        assert "Traceback" not in errors.read_text()

        # Only what was uploaded is read, and no more than 32 MB are.
        picture = {"path": str(scene), "meta": {"_type": "gradio.FileData"}}
        call = f"{url}gradio_api/call/segment"
        event = httpx.post(call, json={"data": [picture]}).json()["event_id"]
        answer = httpx.get(f"{call}/{event}", timeout=60).text
        assert answer.startswith("event: error")
        assert "not uploaded by a user" in errors.read_text()
        assert httpx.get(f"{url}gradio_api/file={scene}").status_code == 403
        files = {"files": ("large.png", bytes(33 * 2**20))}
        assert httpx.post(f"{url}gradio_api/upload", files=files).status_code == 413


@pytest.mark.integration
def test_the_page_in_a_browser(model, tmp_path):
    """It shows the mask of a photo, without an error or a request to elsewhere."""
    pytest.importorskip("gradio")
    datasets = pytest.importorskip("sklearn.datasets")
    playwright = pytest.importorskip("playwright.sync_api")
    browsers = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, browsers)), None)
    photo = datasets.load_sample_image("china.jpg")  # (427, 640, 3)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    classes = [NAMES[i] for i in np.unique(model.segment(photo))]
    with playwright.sync_playwright() as driver:
        if path is None and not Path(driver.chromium.executable_path).exists():
            pytest.skip("There is no chromium.")
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        with served(model, tmp_path, signal.SIGTERM) as (url, errors):
            for scheme, width in (("light", 1280), ("dark", 1280), ("light", 390)):
                size = {"width": width, "height": 900}
                page = browser.new_page(color_scheme=scheme, viewport=size)
                page.set_default_timeout(60000)
                faults, asked = [], []
                page.on("console", lambda one, to=faults: to.append((one.type, one)))
                page.on("pageerror", lambda one, to=faults: to.append(("error", one)))
                page.on("request", lambda one, to=asked: to.append(one.url))
                page.goto(url)
                page.locator("input[type=file]").first.set_input_files(
                    tmp_path / "photo.png"
                )
                page.get_by_role("button", name="Segment").click()
                page.locator("table td").first.wait_for()
                found = page.locator("table td:nth-child(2)").all_inner_texts()
                assert sorted(found) == sorted(classes)
                # The photo, and all that is made of it.
                page.wait_for_function(
                    "count => [...document.querySelectorAll('img')].filter("
                    "one => one.complete && one.naturalWidth > 500).length == count",
                    arg=4 + len(STAGES),
                )
                # Nothing is wider than the screen.
                assert page.evaluate("document.documentElement.scrollWidth") <= width
                # Of the next picture, nothing is shown before it is segmented.
                page.get_by_label("Remove Image").click()
                page.locator("table td").first.wait_for(state="detached")
                page.wait_for_function("() => !document.querySelector('img')")
                assert [one for kind, one in faults if kind == "error"] == []
                local = (url, "data:", "blob:")
                assert [one for one in asked if not one.startswith(local)] == []
                page.close()
            browser.close()
        assert "Traceback" not in errors.read_text()


# Edges


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_pictures_of_any_mode(model, views, tmp_path, mode):
    path = tmp_path / "picture.tif"
    Image.new(mode, (1, 1)).save(path)
    seen = look_at(path, model, views)
    assert seen["mask"].shape == seen["Y s8"].shape == (1, 1, 3)
    ((_, _, share),) = classes_of(seen["classes"])
    assert share == "100.0%"


def test_a_model_without_names_and_colors(tiny_backbone, scene):
    model = ksa.build_segmenter(tiny_backbone((4,)), 2, adapters=False)
    seen = look_at(scene, model, Views(model))
    labels = model.segment(np.asarray(Image.open(scene)))
    np.testing.assert_array_equal(seen["mask"], colorize(labels, colors=palette(2)))
    names = {name for name, _, _ in classes_of(seen["classes"])}
    assert names == {f"class {i}" for i in np.unique(labels)}


def write_text(path):
    path.write_text("no picture")


def write_bomb(path):
    Image.new("1", (20000, 20000)).save(path)  # 50 kB


def write_large(path):
    Image.new("1", (9000, 6000)).save(path)


BAD = {
    "no picture": (write_text, "image cannot be read.* Received: <i>x.png$"),
    "bomb": (write_bomb, r"too large: Image size \(400000000 pixels\) exceeds"),
    "large": (write_large, "at most 50 megapixels.* height 6000 and width 9000"),
    "none": (None, "There is no picture. Choose one first."),
}


@pytest.mark.integration
@pytest.mark.parametrize("write, words", BAD.values(), ids=BAD)
def test_errors_stand_in_the_page_in_the_librarys_words(model, tmp_path, write, words):
    gradio = pytest.importorskip("gradio")
    event, _ = build_demo(model).fns.values()
    path = tmp_path / "<i>x.png"
    picture = {"path": str(path)} if write else None
    if write:
        write(path)
    with pytest.raises(gradio.Error) as raised:
        event.fn(picture)
    # Gradio shows HTML; a traceback would be printed for each error.
    message = raised.value.message
    assert re.search(words, html.unescape(message), re.DOTALL)
    assert "<" not in message and str(tmp_path) not in message
    assert not raised.value.print_exception


@pytest.fixture
def own_environment(monkeypatch):
    """Undo what the command changes in the environment."""
    for name in ("GRADIO_RUN_HISTORY", "GRADIO_ANALYTICS_ENABLED", "GRADIO_TEMP_DIR"):
        monkeypatch.setenv(name, "")


@pytest.mark.integration
@pytest.mark.usefixtures("own_environment")
def test_what_cannot_be_served_costs_one_line(model, tmp_path, monkeypatch, capsys):
    pytest.importorskip("gradio")
    monkeypatch.chdir(tmp_path)
    model.save("model.keras")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for arguments, words in (
            (["none.keras"], "MODEL must be a .keras file"),
            (["none.onnx"], "There is no exported model at this path"),
            (["model.keras", "--port", port], f"--host 127.0.0.1 --port {port}"),
        ):
            assert main(["demo", *arguments]) == 1
            (line,) = capsys.readouterr().err.splitlines()
            assert line.startswith("segadapter: error: ") and words in line


@pytest.mark.usefixtures("own_environment")
def test_without_gradio(model, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    install = "pip install keras-segadapter[demo]"
    with pytest.raises(ImportError, match=re.escape(install)):
        build_demo(model)
    assert main(["demo", "model.keras"]) == 1
    assert install in capsys.readouterr().err
