import jax
import numpy as np

import riemann_optax as ro
from riemann_optax.examples import linen_loop


def test_the_linen_loop_learns_the_digits(capsys):
    assert linen_loop.main(["--steps", "120"]) == 0
    printed = capsys.readouterr().out
    assert "after 120 steps" in printed
    state, loss, accuracy = linen_loop.train(120)
    assert f"validation loss {loss:.4f}, accuracy {accuracy:.2%}" in printed
    assert accuracy > 0.85
    statistics = ro.metric_statistics(state.opt_state, state.params)
    assert len(statistics) == len(jax.tree.leaves(state.params)) == 6
    assert all(np.isfinite(value) for layer in statistics.values() for value in layer.values())


def test_wrong_arguments_end_in_one_line(capsys):
    assert linen_loop.main(["--steps", "-3"]) == 2
    assert capsys.readouterr().err == "error: argument --steps: expected a whole number from 1, got '-3'\n"
