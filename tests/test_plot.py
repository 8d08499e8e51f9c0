"""The picture of E: what is drawn is what was recorded."""

import subprocess
import sys

import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax
import pytest

import riemann_optax as ro

mpl.use("agg")


@pytest.fixture
def axes():
    from matplotlib import pyplot

    figure, axes = pyplot.subplots()
    yield axes
    pyplot.close(figure)


def band(collection):
    """The lowest and the highest of a band, over the steps."""
    vertices = collection.get_paths()[0].vertices
    return [
        [part(vertices[vertices[:, 0] == step, 1]) for step in np.unique(vertices[:, 0])]
        for part in (np.min, np.max)
    ]


def test_lines_are_means_and_bands_reach_from_smallest_to_largest(axes):
    """``E = 1 + 3 |w|``, in NumPy."""
    tx = ro.riemannian_sgd(0.1, phi=ro.phi.maintenance_energy(), alpha=3.0, record=True)
    params = {"a": jnp.array([0.0, -1.0]), "b": jnp.array([2.0])}
    state, history, expected = tx.init(params), [], []
    for step in range(3):
        scaled = {name: (step + 1.0) * leaf for name, leaf in params.items()}
        _, state = tx.update(scaled, state, scaled)
        history.append(ro.metric_scalars(state, scaled, prefix="train/"))
        expected.append({name: 1 + 3 * np.abs(np.float64(leaf)) for name, leaf in scaled.items()})
    assert ro.plot.metric(history, [0, 100, 200], axes=axes) is axes
    assert [line.get_label() for line in axes.lines] == ["train/a", "train/b"]
    for name, line, filled in zip("ab", axes.lines, axes.collections, strict=True):
        np.testing.assert_array_equal(line.get_xdata(), [0, 100, 200])
        np.testing.assert_allclose(line.get_ydata(), [row[name].mean() for row in expected], rtol=1e-6)
        low, high = band(filled)
        np.testing.assert_allclose(low, [row[name].min() for row in expected], rtol=1e-6)
        np.testing.assert_allclose(high, [row[name].max() for row in expected], rtol=1e-6)
    assert (axes.get_yscale(), axes.get_xlabel(), axes.get_ylabel()) == ("log", "step", "E")
    axes.figure.canvas.draw()


def test_what_a_row_lacks_is_a_gap_and_other_scalars_are_left_out(axes):
    history = [{"E_mean/w": 2.0, "rate_mean/w": 0.5}, {"loss": 1.0}, {"E_mean/w": np.inf}, {"E_mean/w": 4.0}]
    ro.plot.metric(history, axes=axes)
    (line,) = axes.lines
    np.testing.assert_array_equal(line.get_xdata(), range(4))
    np.testing.assert_array_equal(line.get_ydata(), [2.0, np.nan, np.nan, 4.0])


def test_a_figure_is_made_and_the_only_leaf_has_a_label():
    from matplotlib import pyplot

    made = ro.plot.metric([{"E_mean/": 2.0}])
    assert pyplot.fignum_exists(made.figure.number)
    assert made.get_legend_handles_labels()[1] == ["the only leaf"]
    pyplot.close(made.figure)


def test_errors_name_the_argument(axes):
    with pytest.raises(ValueError, match=r"^steps must have as many numbers .* got 1 and 2"):
        ro.plot.metric([{"E_mean/w": 1.0}] * 2, [3], axes=axes)
    for history in ([], [{"loss": 1.0}]):
        with pytest.raises(ValueError, match=r"^history must have E_mean .*record=True"):
            ro.plot.metric(history, axes=axes)
    assert not axes.lines


def test_names_stand_at_the_ends_of_their_lines_and_do_not_overlap():
    from matplotlib import pyplot

    with pyplot.rc_context(ro.plot.STYLE):
        figure, axes = pyplot.subplots()
        for height, name in ((1.0, "a"), (1.001, "b"), (1.002, "c"), (3.0, "far above")):
            axes.plot([0, 1, 2], [2.0, 2.0, height], label=name)
        axes.plot([0, 1, 2], [2.0, 2.5, np.nan], label="ends early")
        axes.plot([0, 1], [1.0, 1.0])  # no label
        axes.axhline(3.01, label="a level")
        axes.set(xlim=(0, 2), ylim=(0, 4))
        ro.plot.name_lines(axes)
        figure.canvas.draw()
    boxes = {text.get_text(): text.get_window_extent() for text in axes.texts}
    assert sorted(boxes) == ["a", "a level", "b", "c", "ends early", "far above"]
    assert not any(one.overlaps(other) for a, one in boxes.items() for b, other in boxes.items() if a != b)
    for text in axes.texts:
        named = next(line for line in axes.lines if line.get_label() == text.get_text())
        assert text.get_color() == named.get_color()
    ends = {"ends early": (1, 2.5), "b": (2, 1.001)}
    for name, end in ends.items():
        x, y = axes.transData.transform(end)
        assert boxes[name].y0 < y < boxes[name].y1
        assert 0 < boxes[name].x0 - x < 20
    assert figure.bbox.containsx(boxes["far above"].x1)  # the layout made room
    pyplot.close(figure)


def least_difference(colours, seen_by):
    """The smallest distance in RGB between two colours, as seen through a matrix on linear RGB."""
    linear = np.array([mpl.colors.to_rgb(colour) for colour in colours]) ** 2.2
    seen = np.clip(linear @ np.transpose(seen_by), 0, 1) ** (1 / 2.2)
    return np.min(np.linalg.norm(seen[:, None] - seen, axis=-1) + 9 * np.eye(len(seen)))


@pytest.mark.parametrize(
    "seen_by",
    [
        [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
        [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],
    ],
    ids=["protanopia", "deuteranopia"],
)
def test_the_colours_can_be_told_apart_without_red_or_without_green(seen_by):
    """Simulated as Viénot, Brettel and Mollon do (1999); the default colours of matplotlib cannot."""
    ours = ro.plot.STYLE["axes.prop_cycle"].by_key()["color"]
    theirs = mpl.rcParamsDefault["axes.prop_cycle"].by_key()["color"][: len(ours)]
    assert least_difference(ours, seen_by) > 0.14 > least_difference(theirs, seen_by)


def test_says_what_is_missing_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "riemann_optax.plot", raising=False)
    monkeypatch.delattr(ro, "plot", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'riemann-optax\[examples\]'"):
        _ = ro.plot


def test_the_package_is_imported_without_matplotlib():
    """Another process: this one has imported it."""
    code = (
        "import sys, riemann_optax as ro; assert 'matplotlib' not in sys.modules; "
        "ro.plot; assert 'matplotlib' in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=120)


def test_one_dictionary_is_refused_by_the_remedy():
    with pytest.raises(TypeError, match=r"history must be a list of dictionaries.* give \[scalars\]"):
        ro.plot.metric({"E_mean/w": 1.0})


def test_a_state_in_the_history_is_named_and_steps_may_be_a_range(axes):
    with pytest.raises(TypeError, match=r"got a EmptyState in it: give what metric_scalars"):
        ro.plot.metric([optax.EmptyState()])
    row = {"E_min/w": 1.0, "E_mean/w": 2.0, "E_max/w": 3.0}
    drawn = ro.plot.metric([row, row], range(10, 12), axes=axes)
    np.testing.assert_array_equal(drawn.lines[0].get_xdata(), [10, 11])


def test_many_leaves_have_no_legend_and_one_row_has_marks(axes):
    row = {f"E_{part}/{leaf}": 2.0 for leaf in range(13) for part in ("min", "mean", "max")}
    drawn = ro.plot.metric([row], axes=axes)
    assert drawn.get_legend() is None
    assert drawn.get_title() == "13 arrays; for names join them: metric_scalars(groups=...)"
    assert {line.get_marker() for line in drawn.lines} == {"."}


def test_other_scalars_whose_names_end_alike_are_left_out():
    row = {"E_min/w": 1.0, "E_mean/w": 2.0, "E_max/w": 3.0, "validation/MSE_mean/x": 9.0, "run/E_mean/w": 4.0}
    lines = ro.plot.metric([row]).lines
    assert {line.get_label(): list(line.get_ydata()) for line in lines} == {"w": [2.0], "run/w": [4.0]}


def test_none_is_a_gap_and_a_word_is_named():
    rows = [{"E_mean/w": 2.0}, {"E_mean/w": None}]
    np.testing.assert_array_equal(ro.plot.metric(rows).lines[0].get_ydata(), [2.0, np.nan])
    with pytest.raises(TypeError, match=r"^history must have numbers, got 'two' as 'E_mean/w'"):
        ro.plot.metric([{"E_mean/w": "two"}])


@pytest.mark.parametrize(
    "places",
    [[np.datetime64("2026-01-01"), np.datetime64("2026-01-02")], ["first", "second"]],
    ids=["dates", "words"],
)
def test_lines_over_dates_and_words_are_named(axes, places):
    axes.plot(places, [1.0, 2.0], label="loss")
    ro.plot.name_lines(axes)
    assert [text.get_text() for text in axes.texts] == ["loss"]


@pytest.mark.parametrize("value", [np.ones(2), 1j, "high"], ids=["two numbers", "complex", "word"])
def test_what_is_no_number_is_named(value):
    with pytest.raises(TypeError, match=r"history must have numbers, got .* as 'E_mean/w'"):
        ro.plot.metric([{"E_mean/w": value, 3: "not a name"}])


def test_lines_in_one_colour_differ_in_style_and_say_so(axes):
    count = len(mpl.rcParams["axes.prop_cycle"])
    names = [f"layer{index}" for index in range(count + 1)]
    ro.plot.metric(
        [{f"E_{part}/{name}": 1.0 for part in ("min", "mean", "max") for name in names}] * 2, axes=axes
    )
    first, last = axes.lines[0], axes.lines[count]
    assert first.get_color() == last.get_color()
    assert [first.get_linestyle(), last.get_linestyle()] == ["-", "--"]
    ro.plot.name_lines(axes)
    named = {text.get_text() for text in axes.texts}
    assert named == {*names[:-1], f"{names[-1]} (dashed)"}
