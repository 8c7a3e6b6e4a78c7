"""What people read, the README and the pages of the site, and what they are made of."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
SITE = ROOT / "docs/pages"
FILES = [ROOT / "README.md", *sorted(SITE.rglob("*.md"))]
NOTEBOOKS = {
    str(path.relative_to(ROOT)): json.loads(path.read_text())["cells"]
    for path in sorted(SITE.glob("notebooks/*.ipynb"))
}


def as_page(cells):
    """Return the text of a notebook, with its code in blocks of "cell"."""
    texts = ["".join(cell["source"]) for cell in cells]
    return "\n\n".join(
        f"```cell\n{text}\n```" if cell["cell_type"] == "code" else text
        for cell, text in zip(cells, texts, strict=True)
    )


PAGES = {str(path.relative_to(ROOT)): path.read_text() for path in FILES}
PAGES |= {name: as_page(cells) for name, cells in NOTEBOOKS.items()}
README = PAGES["README.md"]


def blocks(text, language):
    """Return the blocks of code in a language: "python" runs, "py" needs more."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def run_python(page):
    """Run a page's blocks of Python in one namespace, as a script runs."""
    names = {"__name__": "__main__"}
    for block in blocks(PAGES[page], "python"):
        exec(compile(block, page, "exec"), names)


def rows_of(text):
    """Return the rows of the tables in a Markdown text as lists of cells."""
    cells = [line.split("|")[1:-1] for line in text.splitlines()]
    return [[cell.strip() for cell in row] for row in cells if row]
