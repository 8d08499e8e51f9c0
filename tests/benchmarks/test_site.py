"""README and the site show what the records hold."""

import json

import numpy as np
import pytest

from benchmarks.report import drop_in, packaged, readme_picture, sentences, site, suite
from benchmarks.shared.command import RESULTS
from benchmarks.shared.records import Records
from riemann_optax.examples.train import chooser


@pytest.fixture(scope="module")
def known():
    return site.tables(
        suite.load(RESULTS / "time_to_target"), list(Records(RESULTS / "continual.jsonl")), RESULTS
    )


@pytest.mark.parametrize("page", site.PAGES, ids=lambda page: page.name)
def test_tables_are_those_of_the_records(page, known):
    assert site.filled(page.read_text(), known) == page.read_text(), "python -m benchmarks.report --tables"


def test_the_table_that_the_trainer_packs_is_that_of_the_records(tmp_path):
    found = suite.load(RESULTS / "time_to_target")
    made = packaged.table(found.complete, list(Records(RESULTS / "continual.jsonl")), RESULTS)
    packaged.write(made, tmp_path / "made.json")
    assert chooser.TABLE.read_text() == (tmp_path / "made.json").read_text(), (
        "python -m benchmarks.report --tables"
    )
    valley = json.loads((RESULTS / "figure1.json").read_text())["rows"]
    (steps,) = [
        row["best"]["steps"]
        for row in valley
        if (row["surface"], row["method"], row["role"]) == ("axis-aligned", "secant curvature", "metric")
    ]
    assert made["phis"]["secant_curvature"]["seen"].startswith(f"steps in a steep valley: {steps:.0f}, ")


def test_every_table_is_shown_and_a_changed_number_is_seen(known):
    text = "".join(page.read_text() for page in site.PAGES)
    assert {place[2] for place in site.PLACE.finditer(text)} == set(known)
    page = next(page for page in site.PAGES if page.name == "evidence.md").read_text()
    assert site.filled(page.replace("2.51", "2.15"), known) == page


@pytest.mark.parametrize(
    ("sentence", "name"),
    [(sentence, name) for sentence in sentences.sentences(RESULTS) for name in sentence.files],
    ids=lambda value: value if isinstance(value, str) else value.text[:40],
)
def test_sentences_have_the_numbers_of_the_records_and_a_changed_one_is_seen(sentence, name):
    text = (site.ROOT / name).read_text()
    assert sentence.filled(text) == text, "python -m benchmarks.report --tables"
    found = sentence.pattern.search(text)
    for group in range(1, sentence.text.count("{}") + 1):
        changed = text[: found.start(group)] + "9.9" + text[found.end(group) :]
        assert sentence.filled(changed) == text


def test_a_sentence_that_is_gone_is_an_error():
    sentence = sentences.Sentence(("a.md",), "It needs {} steps.", lambda: ["3"])
    for page in ("It took 3 steps.", "It needs 3 steps. It needs 3 steps."):
        with pytest.raises(ValueError, match="and not once: It needs"):
            sentence.filled(page)


def test_what_pages_say_without_a_number_holds_in_the_records(known):
    """README: no worse at AdamW's best rate; evidence: Nesterov's momentum is most of the difference."""
    for shape in drop_in.SHAPES.values():
        found = drop_in.recorded(Records(RESULTS / "drop_in.jsonl"), shape, (drop_in.ADAMW, drop_in.OURS))
        adamw, ours = ([run.validation for run in found[name]] for name in (drop_in.ADAMW, drop_in.OURS))
        assert ours[int(np.argmin(adamw))] <= min(adamw)
    rows = [line.split("|") for line in known["million"]().splitlines()[2:]]
    losses = {row[1].strip(" `").split("(")[0]: float(row[2]) for row in rows if len(row) > 3}
    gained = {name: losses["optax.adamw"] - loss for name, loss in losses.items()}
    assert gained["optax.nadamw"] > gained["ro.riemannian_adamw"] / 2
    steps = [float(line.split("|")[2]) for line in known["suite"]().splitlines()[2:]]
    assert steps == sorted(steps, reverse=True)


def test_the_picture_of_readme_shows_the_recorded_steps(tmp_path):
    found = readme_picture.paths(RESULTS / "figure1.json")
    minimum = found["metric"][-1]
    for path in found.values():
        np.testing.assert_allclose(path[0], [1.0, -1.0])
        np.testing.assert_allclose(path[-1], minimum, atol=2e-3)
    steps = {name: str(len(path) - 1) for name, path in found.items()}
    assert all(f"{count}" in (site.ROOT / "README.md").read_text() for count in steps.values())
    readme_picture.draw(RESULTS / "figure1.json", tmp_path / "readme.png")
    assert (tmp_path / "readme.png").stat().st_size > 10_000
