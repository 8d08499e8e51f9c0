import io
import re

from rich.console import Console

from riemann_optax.examples.train.display import Display, describe
from riemann_optax.examples.train.loop import Run, Training


def measured(step):
    history = {
        "training": [{"step": step, "loss": 0.25, "accuracy": 0.9}],
        "metric": [{"step": step, "learning_rate": 0.1, "rate_min": [0.02, 0.5], "rate_max": [1.0, 30.0]}],
    }
    return Run(Training({}, ()), step, history)


def shown(console, *, quiet=False):
    with Display(console, quiet=quiet) as display:
        display.begin("metric", 100)
        for step in range(5, 101, 5):
            display.show(measured(step))
    return console.file.getvalue()


def test_a_run_is_described_by_loss_accuracy_and_the_spread_of_effective_rates():
    assert describe(measured(5)) == "loss 0.2500  accuracy 0.900  rates 2e-03 to 3e+00"


def test_a_terminal_gets_a_bar():
    text = shown(Console(file=io.StringIO(), force_terminal=True, width=80))
    assert "\x1b[" in text
    last_line = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).split("\r")[-1]
    assert "100/100" in last_line
    assert "loss 0.2500  accuracy 0.900  rates 2e-03 to 3e+00" in last_line


def test_a_file_gets_ten_plain_lines():
    lines = shown(Console(file=io.StringIO(), force_terminal=False, width=40)).splitlines()
    assert len(lines) == 10
    assert lines[-1] == "metric  step 100/100  loss 0.2500  accuracy 0.900  rates 2e-03 to 3e+00"


def test_quiet_shows_nothing():
    for terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=terminal)
        assert shown(console, quiet=True) == ""
