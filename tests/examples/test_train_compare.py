"""``--compare``: several phis in one run of the trainer."""

import numpy as np
import pytest

from riemann_optax.examples.train import __main__ as train
from riemann_optax.examples.train import pictures, record

SMALL = ["--model", "mlp", "--checkpoint-every", "10", "--quiet"]


def run(*arguments, out):
    return train.main([*SMALL, *arguments, "--out", str(out)])


def test_several_phis_are_trained_on_the_same_batches(tmp_path, capsys):
    """Each ends as it does in a run of its own, to the last bit."""
    size, names = ["--baseline", "none", "--steps", "20"], ["maintenance_energy", "factored_activity"]
    assert run(*size, "--compare", *names, out=tmp_path / "all") == 0
    printed = capsys.readouterr().out
    both = record.read_record(tmp_path / "all" / "record.json")
    assert list(both["results"]) == names
    assert "riemannian_sgd" in printed
    assert "riemannian_adamw" in printed
    for name in names:
        assert run(*size, "--phi", name, out=tmp_path / name) == 0
        alone = record.read_record(tmp_path / name / "record.json")
        for part in ("training", "validation", "metric", "layers"):
            assert both["histories"][name][part] == alone["histories"]["metric"][part]
        assert both["results"][name]["heldout_loss"] == alone["results"]["metric"]["heldout_loss"]
    for picture in ("curves.png", "metric.png"):
        assert (tmp_path / "all" / picture).read_bytes().startswith(b"\x89PNG")
    assert run(*size, "--compare", *names, "--resume", out=tmp_path / "all") == 0
    assert run(*size, "--compare", *reversed(names), "--resume", out=tmp_path / "all") == 2
    assert "give the same" in capsys.readouterr().err


def test_the_name_of_a_run_that_diverged_says_so():
    histories = {"metric": {"diverged": 10}, "baseline": {"diverged": None}}
    labels = {"metric": "riemannian_sgd", "baseline": "sgd"}
    named = pictures._named(histories, labels)
    assert named == {"metric": "riemannian_sgd, diverged by step 10", "baseline": "sgd"}


def test_more_optimisers_than_colours_have_lines_of_their_own():
    histories = dict.fromkeys([*map(str, range(16)), "baseline"])
    styles = [tuple(pictures._style(name, histories).values()) for name in histories]
    assert len(set(styles)) == len(styles)


def test_a_long_name_has_two_lines():
    assert pictures._title_of_a_layer("Dense_0/kernel") == "Dense_0/kernel"
    assert (
        pictures._title_of_a_layer("blocks/0/query_key_value/kernel") == "blocks/0/\nquery_key_value/kernel"
    )


def test_a_metric_that_diverged_at_once_has_an_empty_panel(tmp_path):
    parts = [f"metric_{part}" for part in ("min", "mean", "max")]
    histories = {
        name: {"metric": [{"step": 10, **{part: [value] for part in parts}}], "layers": ["w"]}
        for name, value in {"a": 1.0, "b": np.nan}.items()
    }
    for shown in (histories, {"b": histories["b"]}):
        pictures.draw_metrics(shown, "title", "words", tmp_path / "metric.png")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--compare", "activity", "--phi", "activity"], "--compare names the phis: leave out --phi"),
        (["--compare", "activity", "activity"], "--compare has activity twice"),
        (["--compare", "activities"], "activities is not known"),
        (
            ["--compare", "activity", "--optimizer", "riemannian_adamw", "--conformal", "none"],
            "--learning-rate",
        ),
    ],
)
def test_what_cannot_be_compared_is_said_before_anything_is_written(tmp_path, capsys, arguments, message):
    assert run(*arguments, out=tmp_path / "run") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
