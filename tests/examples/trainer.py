"""The trainer on a small problem."""

from riemann_optax.examples.train import __main__ as train

SMALL = ["--model", "mlp", "--steps", "40", "--checkpoint-every", "10", "--quiet"]


def run(*arguments, out=None):
    return train.main([*SMALL, *arguments, *(["--out", str(out)] if out is not None else [])])
