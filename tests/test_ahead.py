"""Reading ahead: what is given never depends on who reads it, or when."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import keras
import numpy as np
import pytest
from conftest import EAGER
from PIL import Image

import keras_segadapter as ksa
from keras_segadapter.data import Augmentation, FolderDataset
from keras_segadapter.data.ahead import Readers


@pytest.fixture
def folder(tmp_path):
    """Write eleven pairs of files of different sizes."""
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    for i in range(11):
        size = (20 + 3 * i, 50 - 2 * i)
        image, mask = rng.integers(0, 256, (*size, 3)), rng.integers(0, 3, size)
        Image.fromarray(image.astype("uint8")).save(tmp_path / f"images/{i:02}.png")
        Image.fromarray(mask.astype("uint8")).save(tmp_path / f"masks/{i:02}.png")
    return tmp_path


def open_views(folder, **options):
    defaults = {"augmentation": Augmentation((24, 32)), "shuffle": True, "seed": 3}
    return FolderDataset(folder, 3, **{**defaults, "batch_size": 2, **options})


def read(data, epoch):
    data.epoch = epoch
    images, masks = zip(*data, strict=True)
    return np.concatenate(images), np.concatenate(masks)


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def readers():
    threads = threading.enumerate()
    return {thread for thread in threads if thread.name.startswith("read_")}


def tiny_model():
    backbone = keras.Sequential(
        [keras.Input((None, None, 3)), keras.layers.Conv2D(4, 4, 4)]
    )
    model = ksa.build_segmenter(
        backbone, 3, adapters=False, preprocessing=keras.layers.Rescaling(1 / 255)
    )
    model.compile(run_eagerly=EAGER)
    return model


# Contract


def test_samples_are_read_ahead_and_once():
    asked = []

    def keep(key):
        asked.append(key)
        return -key

    source = Readers(keep, threads=2, processes=0)
    assert source.get([0, 1], [2, 3]) == [0, -1]
    assert source.get([2, 3], [4, 5]) == [-2, -3]
    assert source.get([9], []) == [-9]  # 4 and 5 are dropped
    source.close()
    assert sorted(asked)[:4] == [0, 1, 2, 3] and len(set(asked)) == len(asked)


def test_a_fault_ahead_is_raised_only_where_it_is_asked_for():
    source = Readers(lambda key: 1 // key, threads=1, processes=0)
    assert source.get([1], [0, 2]) == [1]
    with pytest.raises(ZeroDivisionError):
        source.get([0], [2])
    assert source.get([2]) == [0]
    source.close()


def test_the_next_batches_are_read_while_a_model_trains(folder):
    data = open_views(folder, batch_size=3, threads=1)
    begun, kept = [], data._read_whole
    data._read_whole = lambda i: begun.append(i) or kept(i)
    data[0]
    deadline = time.monotonic() + 20
    while len(begun) < 9 and time.monotonic() < deadline:
        time.sleep(0.01)
    order = np.random.default_rng([3, 0]).permutation(11)
    assert begun == order[:9].tolist()
    data.close()


def test_batches_at_random_are_not_read_ahead(folder):
    data = open_views(folder, batch_size=2)
    data[3], data[1]
    assert not data._readers.futures
    data[2]
    assert len(data._readers.futures) == 5  # all that are left
    data.close()


# Meaning


@pytest.mark.parametrize("threads", [1, 5])
def test_batches_do_not_depend_on_what_was_read_before(folder, threads):
    expected = [read(open_views(folder, threads=1), epoch) for epoch in (0, 1)]
    data = open_views(folder, threads=threads)
    data[0], data[3]
    assert_same(read(data, 1), expected[1])
    data[0], data[1]  # as Keras does to learn their types
    assert_same(read(data, 0), expected[0])
    data.close()
    assert_same(read(data, 1), expected[1])
    data.close()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_shards_are_parts_of_each_epoch(folder, count):
    whole = open_views(folder, batch_size=1)
    shards = [open_views(folder, shard=(i, count), batch_size=2) for i in range(count)]
    used = 11 // count
    assert [len(shard) for shard in shards] == [-(-used // 2)] * count
    for epoch in (0, 4):
        images, masks = read(whole, epoch)
        for i, shard in enumerate(shards):
            chosen = slice(i, used * count, count)
            assert_same(read(shard, epoch), (images[chosen], masks[chosen]))


USES = {
    "fit": lambda model, data: model.fit(data, epochs=2, verbose=0),
    "evaluate": lambda model, data: model.evaluate(data, verbose=0),
    "predict": lambda model, data: model.predict(data, verbose=0),
    "evaluate_images": ksa.evaluate_images,
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_use_ends_the_threads(folder, use):
    before = readers()
    data = open_views(folder, batch_size=4)
    begun, kept = [], data._read_whole
    data._read_whole = lambda i: begun.append(readers() - before) or kept(i)
    use(tiny_model(), data)
    assert begun[-1] and readers() <= before


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_faulty_file_ends_a_use_by_its_name(folder, use):
    before = readers()
    Image.new("RGB", (9, 9), (1, 2, 3)).save(folder / "masks/09.png")
    data = FolderDataset(folder, 3, image_size=(24, 32), batch_size=1)
    with pytest.raises(ValueError, match=r"09.png with the colors \(1, 2, 3\) \(81 p"):
        use(tiny_model(), data)
    assert readers() <= before
    Image.new("L", (32, 47)).save(folder / "masks/09.png")
    use(tiny_model(), data)


def test_validation_data_keeps_its_readers_through_a_training(folder):
    val = open_views(folder, batch_size=4)
    seen, kept = set(), val._read_whole

    def read_whole(i):
        seen.add(val._readers)
        return kept(i)

    val._read_whole = read_whole
    tiny_model().fit(open_views(folder), validation_data=val, epochs=3, verbose=0)
    assert len(seen) == 1 and val._readers is None


@pytest.mark.parametrize("part", ["training", "validation"])
def test_faulty_files_stop_fit_by_their_names(folder, part):
    before = readers()
    Image.new("RGB", (9, 9), (1, 2, 3)).save(folder / "masks/09.png")
    data = FolderDataset(folder, 3, image_size=(24, 32), batch_size=1)
    paths = [list(paths)[:4] for paths in (data.image_paths, data.mask_paths)]
    sound = FolderDataset(tuple(paths), 3, image_size=(24, 32), batch_size=1)
    train, val = (data, sound) if part == "training" else (sound, data)
    with pytest.raises(ValueError, match=r"09.png with the colors \(1, 2, 3\) \(81 p"):
        tiny_model().fit(train, validation_data=val, verbose=0)
    assert readers() <= before


# Edges


@pytest.mark.parametrize(
    "shard, words",
    [
        (2, r"`shard` must be \(index, count\). Received: shard=2$"),
        ((0,), r"`shard` must be \(index, count\)"),
        ((-1, 2), r"`shard\[0\]` must be an integer of at least 0"),
        ((0, 0), r"`shard\[1\]` must be an integer of at least 1"),
        ((2, 2), r"an index below the count .*shard=\(2, 2\), 11 images$"),
        ((0, 12), r"at most the number of images.*shard=\(0, 12\), 11 images$"),
    ],
    ids=["number", "one", "negative", "none", "index", "many"],
)
def test_wrong_shards_raise(folder, shard, words):
    with pytest.raises(ValueError, match=words):
        open_views(folder, shard=shard)


# Processes


SCRIPT = """
import json, os, signal, sys, time
import numpy as np
from keras_segadapter.data import Augmentation, FolderDataset

def main(folder, processes):
    data = FolderDataset(
        folder, 3, augmentation=Augmentation((24, 32)), shuffle=True, seed=3,
        batch_size=2, processes=processes,
    )
    {body}

if {guard}:
    main(sys.argv[1], int(sys.argv[2]))
"""


@pytest.fixture
def start(tmp_path, folder):
    """Return a function that starts a script, which does not outlive the test."""
    started = []

    def start(body, processes=1, guard="__name__ == '__main__'"):
        body = textwrap.indent(textwrap.dedent(body), " " * 4).strip()
        (tmp_path / "script.py").write_text(SCRIPT.format(body=body, guard=guard))
        started.append(
            subprocess.Popen(
                [sys.executable, "-W", "error", "script.py", folder, str(processes)],
                cwd=tmp_path,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return started[0]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for_end(pids):
    deadline = time.monotonic() + 60
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not any(map(is_running, pids))


@pytest.mark.slow
def test_processes_give_the_same_views_and_tell_errors_as_they_are(folder, start):
    body = """
    sums = []
    for epoch in (0, 5):
        data.epoch = epoch
        sums.append([[int(part.astype(int).sum()) for part in pair] for pair in data])
    data.close()
    os.truncate(data.mask_paths[7], 40)
    try:
        list(data)
    except ValueError as error:
        sums.append(str(error))
    print(json.dumps(sums))
    """
    data = open_views(folder)
    expected = []
    for epoch in (0, 5):
        data.epoch = epoch
        expected.append([[int(part.astype(int).sum()) for part in x] for x in data])
    process = start(body, processes=2)
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    *sums, message = json.loads(out)
    assert sums == expected
    assert message.startswith("The mask cannot be read")
    assert message.endswith("masks/07.png")


@pytest.mark.integration
@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGKILL]
)
def test_processes_end_with_the_training(start, number):
    body = """
    # Ignored where a shell started the tests in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    data[0]
    print(json.dumps([*data._readers.pool._processes]), flush=True)
    for epoch in range(10**6):
        data.epoch = epoch
        list(data)
    """
    process = start(body)
    pids = json.loads(process.stdout.readline())
    assert pids and all(map(is_running, pids))
    os.kill(process.pid, number)
    process.communicate(timeout=100)
    assert wait_for_end(pids)


@pytest.mark.slow
def test_a_script_without_a_guard_is_told_so(start):
    process = start("data[0]", guard="True")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    last = errors.strip().splitlines()[-1]
    assert 'must stand under `if __name__ == "__main__":`' in last
