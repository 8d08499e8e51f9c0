"""The notebooks as they are committed: a person can read them without running them.

That they run is seen by ``pytest --nbmake notebooks``, at the reduced size in ``.ci/run``.
"""

import base64
import json
import re
import struct
from pathlib import Path

import pytest

import riemann_optax as ro

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LARGEST = 600_000  # bytes of a file
REMEDY = "python notebooks/refresh.py"
# Of any machine: a home, a temporary folder, an installed package, a drive.
MACHINE_PATH = re.compile(
    r"(?<![\w.:/])/(home|root|tmp|usr|Users|work|content|opt|var)/|site-packages|\b[A-Z]:\\\\"
)

pytestmark = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path):
    cells = json.loads(path.read_text())["cells"]
    return cells, [cell for cell in cells if cell["cell_type"] == "code"]


def text_of(output):
    """All text of an output, pictures left out."""
    data = {kind: value for kind, value in output.get("data", {}).items() if not kind.startswith("image/")}
    return json.dumps([output.get("text", ""), data])


def test_there_are_seven_and_readme_links_each(path):
    assert [notebook.stem[:2] for notebook in NOTEBOOKS] == [f"{number}_" for number in range(1, 8)]
    assert f"(notebooks/{path.name})" in (ROOT / "README.md").read_text()


def test_the_first_code_cell_installs_on_colab_alone(path):
    _, code = read(path)
    installs = "".join(code[0]["source"])
    assert installs == (
        "import sys\n\n"
        'if "google.colab" in sys.modules:  # on Colab, after !git clone into /content; elsewhere nothing\n'
        '    %pip install -q "/content/riemann_optax[notebooks]"'
    )
    assert not any("%pip" in "".join(cell["source"]) for cell in code[1:])


def test_outputs_are_those_of_one_clean_run(path):
    _, code = read(path)
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1)), REMEDY
    outputs = [output for cell in code for output in cell["outputs"]]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    for output in outputs:
        assert output["output_type"] != "error"
        assert output.get("name") != "stderr", "a warning is in the output"
        assert not MACHINE_PATH.search(text_of(output))
    assert path.stat().st_size < LARGEST
    # Timestamps and kernel versions would differ with every run.
    assert all(not cell["metadata"] for cell in code), REMEDY


def test_pictures_can_be_read_600_pixels_wide(path):
    """All in the style of riemann_optax.plot, none wider, no text below 9 points: 11 pixels of 600."""
    _, code = read(path)
    source = "\n".join("".join(cell["source"]) for cell in code)
    assert "plt.rcParams.update(ro.plot.STYLE)" in source
    widths = {float(width) for width in re.findall(r"figsize=\(([\d.]+)", source)}
    assert widths <= {ro.plot.STYLE["figure.figsize"][0]}
    assert all(float(size) >= 9 for size in re.findall(r"fontsize=([\d.]+)", source))
    figures = re.findall(r"plt\.(?:figure|subplots)\(", source)
    assert len(re.findall(r"\.suptitle\(\"", source)) >= len(figures) - source.count("def turn_it")
    pictures = [
        output["data"]["image/png"]
        for cell in code
        for output in cell["outputs"]
        if "data" in output and "image/png" in output["data"]
    ]
    limit = ro.plot.STYLE["figure.figsize"][0] * ro.plot.STYLE["figure.dpi"] + 30
    for picture in pictures:
        (width,) = struct.unpack(">I", base64.b64decode(picture)[16:20])
        assert width <= limit, "text outside the figure, or another size"


def test_what_takes_long_shows_a_progress_bar(path):
    """No cell of the sixth takes more than some seconds."""
    _, code = read(path)
    source = "\n".join("".join(cell["source"]) for cell in code)
    assert ("tqdm(" in source) == (path.stem != "6_geometry")


def test_it_says_what_it_teaches_how_it_was_run_and_where_to_go_next(path):
    cells, _ = read(path)
    prose = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    assert "After this notebook you can" in prose[0]
    assert "## Where to go next" in prose[-1]
    assert f"notebooks/refresh.py notebooks/{path.name}" in "\n".join(prose)
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", "\n".join(prose)):
        assert (FOLDER / target).exists(), f"a link to {target}, which is not there"


def test_its_claims_are_asserted_and_its_size_can_be_reduced(path):
    _, code = read(path)
    source = "\n".join("".join(cell["source"]) for cell in code)
    assert 'os.environ.get("RIEMANN_OPTAX_QUICK") == "1"' in source
    assert len(re.findall(r"^ *assert ", source, flags=re.MULTILINE)) >= 3
