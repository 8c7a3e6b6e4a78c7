"""Run the notebooks and keep their outputs, as `python docs/notebooks.py`.

It takes the extras `docs` and `export`. As a hook of mkdocs this file makes a page of
each notebook, outputs included, without running it.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from mkdocs.structure.files import File
from nbclient import NotebookClient
from nbconvert import MarkdownExporter

NOTEBOOKS = sorted(Path(__file__).parent.glob("pages/notebooks/*.ipynb"))


def run(path):
    """Run a notebook in a folder that goes afterwards, and write it with its outputs.

    What would differ in each run is left out: times, the version of Python, and what
    libraries log to stderr.
    """
    notebook = nbformat.read(path, as_version=4)
    with TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            coalesce_streams=True,
            record_timing=False,
            resources={"metadata": {"path": folder}},
        )
        client.execute()
    notebook.metadata.language_info = {"name": "python"}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    nbformat.write(notebook, path)


def on_files(files, config):
    """Add a page for each notebook, and its pictures, to the files of the site."""
    for path in NOTEBOOKS:
        text, found = MarkdownExporter().from_filename(
            path, {"output_files_dir": path.stem, "unique_key": path.stem}
        )
        text = text.replace("![png](", "![What the code above draws](")
        # So that what it prints can look different.
        text = text.replace("```python\n", "``` {.python .cell}\n")
        text += f"\n[This page as a notebook]({path.name})\n"
        pages = {f"{path.stem}.md": text, **found["outputs"]}
        for name, content in pages.items():
            page = File.generated(config, f"notebooks/{name}", content=content)
            files.append(page)
    return files


if __name__ == "__main__":
    for path in NOTEBOOKS:
        run(path)
