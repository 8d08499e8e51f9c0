"""Execute notebooks in place and keep nothing that changes from run to run: ``python notebooks/refresh.py``.

``pytest --nbmake notebooks`` checks that they run; this also writes what they print and draw. Timestamps and
the kernel's version are left out, and a progress bar is kept as it stood at the end.
"""

import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def as_left_on_screen(text: str) -> str:
    """Return a text without what its carriage returns have overwritten."""
    return re.sub(r"^.*\r(?!\n|$)", "", text, flags=re.MULTILINE).replace("\r", "")


def refresh(path: Path) -> None:
    """Execute one notebook and write it; an error in a cell is raised and nothing is written."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", record_timing=False, coalesce_streams=True
    )
    client.execute(cwd=str(FOLDER))
    notebook.metadata = METADATA
    for cell in notebook.cells:
        cell.metadata = {}
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                output.text = as_left_on_screen(output.text)
    nbformat.write(notebook, path)


def main(names: list[str]) -> None:
    """Refresh the notebooks named, by default all."""
    for path in [Path(name) for name in names] or sorted(FOLDER.glob("*.ipynb")):
        began = time.perf_counter()
        refresh(path)
        print(f"{path.name}: {time.perf_counter() - began:.0f} s, {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
