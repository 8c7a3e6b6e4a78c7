"""Files that list the classes of a dataset, with their colors or ids."""

import csv
import json
import re
from pathlib import Path

from PIL import ImageColor

from keras_segadapter.data.disk import read_text

_NAMES = ("name", "class", "class_name", "label", "label_name", "classname")
_COLORS = ("color", "colour", "rgb", "color_rgb")
_IDS = ("id", "index", "value", "class_id", "label_id", "pixel", "pixel_value")
# Three numbers in front of a name, or behind it.
_RGB = r"(\d{1,3})[\s,;]+(\d{1,3})[\s,;]+(\d{1,3})"
_LINE = re.compile(rf"{_RGB}[\s,;:]+(.+)|(.+?)[\s,;:]+{_RGB}[\s,;:]*")


def read_rows(path):
    """Return the rows of a file that lists classes.

    Args:
        path: Path of a `.csv`, `.json` or `.txt` file, as `Labels.from_file` takes it.

    Returns:
        List of tuples of a name, a color (a tuple of three integers, or None) and an
        id (an integer, or None).

    Raises:
        ValueError: If the file cannot be read, or lists no classes.
    """
    path = Path(path)
    readers = {".csv": _read_csv, ".json": _read_json, ".txt": _read_text}
    if path.suffix.lower() not in readers:
        raise ValueError(
            "A file of classes must be a .csv, .json or .txt file. Received: "
            f"path={str(path)!r}"
        )
    try:
        text = read_text(path)
        rows = [_row(row) for row in readers[path.suffix.lower()](text)]
    except OSError as error:
        raise ValueError(
            f"The file of classes cannot be read: {error}. Received: {path}"
        ) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            "A file of classes must give each class a name and, if it gives colors or "
            "ids, three integers in 0..255 or one integer. A CSV file needs a header "
            "such as name,r,g,b or id,name. Received: "
            f"{path}, which does not ({error})"
        ) from error
    if not rows:
        raise ValueError(
            f"A file of classes must list some. Received: {path}, which is empty"
        )
    return rows


def _read_csv(text):
    """Yield the rows of a CSV file as dicts."""
    delimiter = max(",;\t", key=text.split("\n")[0].count)
    for row in csv.DictReader(text.splitlines(), delimiter=delimiter):
        if None in row:  # the fields beyond the header
            raise ValueError(f"a row has more fields than the header: {row[None]}")
        yield row


def _read_json(text):
    """Yield the classes in a JSON file as dicts."""
    data = json.loads(text)
    if isinstance(data, dict) and "categories" in data:
        raise ValueError(
            "it is an annotation file of COCO, for keras_segadapter.data.open_coco"
        )
    if isinstance(data, dict):
        for key in ("classes", "labels"):
            data = data.get(key, data) if isinstance(data, dict) else data
    if isinstance(data, list):
        yield from ({"name": row} if isinstance(row, str) else row for row in data)
        return
    for key, value in data.items():
        if key.isdigit() and isinstance(value, str):
            yield {"id": key, "name": value}
        else:
            yield {"name": key, "id" if isinstance(value, int) else "color": value}


def _read_text(text):
    """Yield the lines of a text file as dicts."""
    for line in map(str.strip, text.splitlines()):
        if not line or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line)
        if found is None:
            yield {"name": line}
        else:
            *front, after, before, r, g, b = found.groups()
            color = front if after else (r, g, b)
            yield {"name": after or before, "color": list(color)}


def _row(row):
    """Return one class, a dict, as a tuple of its name, color and id."""
    row = {str(key).strip().lower(): value for key, value in row.items()}

    def value(names):
        found = [row[name] for name in names if row.get(name) not in (None, "")]
        return found[0] if found else None

    name, color, id_ = str(value(_NAMES) or "").strip(), value(_COLORS), value(_IDS)
    if not name:
        raise ValueError(f"there is no name in {row}")
    if color is None:
        color = [value((short, long)) for short, long in _CHANNELS]
        color = None if None in color else color
    if isinstance(color, str):
        numbers = re.findall(r"\d+", color)
        is_list = len(numbers) == 3 and not color.strip().startswith("#")
        color = numbers if is_list else ImageColor.getrgb(color.strip())[:3]
    if color is not None:
        color = tuple(int(channel) for channel in color)
        if len(color) != 3 or min(color) < 0 or max(color) > 255:
            raise ValueError(f"{color} is not an RGB color")
    return name, color, None if id_ is None else int(id_)


_CHANNELS = (("r", "red"), ("g", "green"), ("b", "blue"))
