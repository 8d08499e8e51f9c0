"""Energy: caching, averaging and the ledger against NumPy, and when a run is over."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import riemann_optax as ro
from benchmarks.energy import __main__ as command
from benchmarks.energy import ledger, runs
from benchmarks.energy.averaging import MAINTENANCE, averaged_changes
from benchmarks.energy.laboratory import FULL, Laboratory
from benchmarks.energy.methods import ERROR, OTHERWISE, SCALES, methods, multiplicative, plastic, shifted
from benchmarks.energy.protocols import PROTOCOLS, Images
from benchmarks.energy.table import rows
from benchmarks.shared.records import Records

STEPS = 300


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def gradients():
    return np.random.default_rng(0).normal(size=(STEPS, 4)) * np.array([1.0, 0.3, 0.1, 0.0])


@pytest.mark.usefixtures("float64")
def test_caching_replays_li_and_van_rossum():
    rate, threshold, fading = 0.1, 0.5, 1e-2
    tx = optax.chain(optax.sgd(rate), ro.synaptic_caching(threshold, fading=fading))
    weights = jnp.array([1.0, -1.0, 0.5, 2.0])
    state = tx.init(weights)
    consolidated, transient = np.array(weights), np.zeros(4)
    spent, kept, paid, times = 0.0, 0.0, np.zeros(3), 0
    for gradient in gradients():
        before = state
        updates, state = tx.update(jnp.asarray(gradient), before, weights)
        weights = weights + updates
        one = ledger.costs(updates, before, state)
        paid += [one.moved.sum(), one.maintenance, one.changed.sum()]

        transient = (1 - fading) * transient - rate * gradient
        if np.abs(transient).max() > threshold:
            spent += np.abs(transient).sum()
            consolidated, transient, times = consolidated + transient, np.zeros(4), times + 1
        kept += MAINTENANCE * np.abs(transient).sum()
        np.testing.assert_allclose(weights, consolidated + transient, rtol=1e-12)
    assert times > 5
    # The last weight has a gradient of 0: three are consolidated each time.
    np.testing.assert_allclose(paid, [spent, kept, 3 * times], rtol=1e-12)
    np.testing.assert_allclose(ledger.pending(state), np.abs(transient).sum(), rtol=1e-12)


@pytest.mark.usefixtures("float64")
def test_an_average_pays_for_what_it_still_has_to_change():
    decay, rate = 0.9, 0.1
    tx = optax.chain(optax.sgd(rate), averaged_changes(decay, maintenance=1.0))
    weights = jnp.zeros(4)
    state = tx.init(weights)
    for gradient in gradients()[:50]:
        updates, state = tx.update(jnp.asarray(gradient), state, weights)
    promised = ledger.costs(updates, state, state).maintenance
    to_come = jnp.zeros(4)
    for _ in range(1000):
        updates, state = tx.update(jnp.zeros(4), state, weights)
        to_come += updates
    np.testing.assert_allclose(promised, jnp.abs(to_come).sum(), rtol=1e-9)


def test_a_rule_without_a_memory_costs_its_path():
    updates = {"w": jnp.array([[1.0, -2.0], [0.0, 0.5]]), "b": jnp.array([0.0, 3.0])}
    state = optax.sgd(1.0).init(updates)
    cost = ledger.costs(updates, state, state)
    np.testing.assert_allclose(cost.moved, [3.0, 3.5])  # b, then w
    np.testing.assert_array_equal(cost.changed, [1, 3])
    assert cost.maintenance == 0


def test_the_error_gate_descends_at_rate_times_loss():
    tx, gradient = plastic(ERROR, 0.5), jnp.array([1.0, -2.0])
    updates, _ = tx.update(gradient, tx.init(gradient), gradient, value=jnp.asarray(0.25))
    np.testing.assert_allclose(updates, -0.5 * 0.25 * gradient, rtol=1e-4)


def course(accuracy, energy):
    accuracy, energy = np.asarray(accuracy, float), np.asarray(energy, float)
    return runs.Course(accuracy, energy, *[np.zeros_like(energy)] * 4)


def test_a_point_is_given_up_once_another_has_arrived_for_less():
    one = course([[[0.5, 0.96]], [[0.5, 0.9]], [[0.5, 0.9]]], [[[1, 4]], [[2, 5]], [[1, 3]]])
    assert runs.arrived(one, 0.95).tolist() == [[1], [-1], [-1]]
    assert runs.hopeless(one, 0.95).tolist() == [False, True, False]
    assert runs.results(one, 0.95)[0]["energy"].tolist() == [4.0]
    assert runs.results(one, 0.95)[1]["energy"].tolist() == [np.inf]


def test_lanes_are_independent_and_the_path_is_no_shorter_than_the_distance():
    generator = np.random.default_rng(1)
    images = Images(
        generator.random((40, 6), np.float32),
        generator.integers(0, 10, 40),
        generator.random((8, 6), np.float32),
        generator.integers(0, 10, 8),
    )
    protocol = PROTOCOLS["van_rossum_pache"]._replace(hidden=(5,))
    make = methods("van_rossum_pache")["error-gated metric + caching"].make
    points = [{"rate": 0.1, "threshold": 0.01}, {"rate": 0.3, "threshold": 0.05}]

    def run(points, seeds):
        return runs.course(protocol, 2.0, images, make, points, seeds, limit=2, examples=30)

    both, alone = run(points, (3, 4)), run(points[1:], (4,))
    for name in ("energy", "path", "distance", "changed"):
        np.testing.assert_allclose(
            getattr(both, name)[1, 1], getattr(alone, name)[0, 0], rtol=1e-4, err_msg=name
        )
    assert np.all(both.path >= both.distance)
    assert np.all(both.distance > 0)


def test_a_small_run_goes_on_where_it_was(tmp_path):
    arguments = [
        *("--quick", "--out", str(tmp_path), "--hidden", "4", "--protocols", "van_rossum_pache"),
        *("--methods", "SGD"),
    ]
    command.main(arguments)
    written = (tmp_path / "energy.quick.jsonl").read_text()
    assert '"fresh"' in written
    command.main(arguments)
    assert (tmp_path / "energy.quick.jsonl").read_text() == written


def test_a_method_that_is_not_known_is_an_error(capsys, tmp_path):
    with pytest.raises(SystemExit):
        command.parse(["--out", str(tmp_path), "--methods", "nobody"])
    assert "unknown nobody" in capsys.readouterr().err


@pytest.mark.usefixtures("float64")
def test_the_gated_multiplicative_metric_moves_by_rate_loss_and_the_way_so_far():
    rate, eps = 0.1, 0.05
    tx = multiplicative({"rate": rate, "eps": eps}, gate=ERROR)
    weights, start = np.array([1.0, -1.0, 0.5, 2.0]), np.array([1.0, -1.0, 0.5, 2.0])
    state = tx.init(jnp.asarray(weights))
    for step, gradient in enumerate(gradients()):
        value = 1.0 / (step + 1)
        updates, state = tx.update(jnp.asarray(gradient), state, jnp.asarray(weights), value=value)
        change = -rate * value * (np.abs(weights - start) + eps) * gradient
        # E is 1 / (1e6 * value) and not 0: the 1 of 1 + alpha * phi is a millionth of the rate, or more.
        np.testing.assert_allclose(updates, change, rtol=1e-3)
        weights = weights + change


def test_the_control_has_the_same_stiffness_elsewhere():
    def own(updates, state, params=None, **extra_args):
        return updates, state

    values = {"a": jnp.arange(12.0).reshape(3, 4), "b": jnp.arange(5.0)}
    found, _ = shifted(optax.GradientTransformationExtraArgs(optax.init_empty_state, own)).update(values, ())
    for name, leaf in values.items():
        assert found[name].shape == leaf.shape
        np.testing.assert_array_equal(np.sort(found[name].ravel()), leaf.ravel())
        assert not np.any(found[name] == leaf)


def test_tuning_aims_above_the_target_and_fresh_seeds_do_not(tmp_path):
    images = Images(*[np.zeros([2, 4], np.float32), np.zeros(2, int)] * 2)
    for name, margin in (("modern", 0.005), ("van_rossum_pache", 0.0)):
        records = Records(tmp_path / f"{name}.jsonl")
        laboratory = Laboratory(name, PROTOCOLS[name], FULL, "digits", images, records)
        aimed, told = (laboratory.key("SGD", phase, {}, range(2))["target"] for phase in ("tuning", "fresh"))
        assert told == PROTOCOLS[name].target["digits"]
        np.testing.assert_allclose(aimed - told, margin, atol=1e-9)


def test_other_images_move_the_grids_that_are_named():
    rule = "gated multiplicative metric + caching"
    on_digits, on_mnist = (methods("li_van_rossum", data)[rule].axes for data in ("digits", "mnist"))
    changed = OTHERWISE["li_van_rossum", "mnist"]
    assert on_digits["eps"].centre == SCALES["li_van_rossum"].eps
    assert on_mnist["eps"].centre == changed["eps"]
    peers = [methods("li_van_rossum", data)["synaptic caching"].axes for data in ("digits", "mnist")]
    assert peers[0]["threshold"] == peers[1]["threshold"]
    assert peers[1]["rate"].centre == changed["sgd"] != peers[0]["rate"].centre


def test_ratios_are_to_the_cheapest_rule_of_ours_that_misses_no_seed():
    def entry(method, energies):
        measures = ("maintenance", "changed", "examples", "distance", "path")
        known = {name: [1.0, 1.0] for name in measures}
        key = {"suite": "energy", "protocol": "van_rossum_pache", "data": "digits", "hidden": [100]}
        key |= {"method": method, "phase": "fresh", "point": {}}
        return {"key": key, "result": known | {"energy": energies}}

    entries = [
        entry("gated multiplicative metric + caching", [1.0, None]),
        entry("error-gated metric + caching", [4.0, 2.0]),
        entry("multiplicative metric + caching", [8.0, 8.0]),
        entry("SGD", [8.0, 8.0]),
    ]
    found = {row.method: row.ratio for row in rows(entries, "van_rossum_pache", "digits", (100,))}
    np.testing.assert_allclose(found["SGD"], (3.0, 1.0))
    np.testing.assert_allclose(found["error-gated metric + caching"], (1.0, 0.0))
    assert np.isnan(found["gated multiplicative metric + caching"]).all()
