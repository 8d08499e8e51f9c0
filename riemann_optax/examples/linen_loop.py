"""The same optimiser in a Flax Linen ``TrainState`` loop, on the digits.

python -m riemann_optax.examples.linen_loop
"""

import argparse
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from flax import linen
from flax.training.train_state import TrainState

import riemann_optax as ro
from riemann_optax.examples.data import batch_indices, load_digits
from riemann_optax.examples.errors import InputError
from riemann_optax.examples.schedule import warmup_cosine
from riemann_optax.examples.train.parser import SEED, Parser, number
from riemann_optax.optimizers import RECOMMENDED_RATES


class MLP(linen.Module):
    """Two hidden layers of ReLU units on flattened images."""

    width: int = 128
    num_classes: int = 10

    @linen.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Map images ``[batch, height, width, channels]`` to logits ``[batch, num_classes]``."""
        activations = images.reshape(images.shape[0], -1)
        for _ in range(2):
            activations = linen.relu(linen.Dense(self.width)(activations))
        return linen.Dense(self.num_classes)(activations)


@jax.jit
def train_step(state: TrainState, images: jax.Array, labels: jax.Array) -> tuple[TrainState, jax.Array]:
    """Take one step on a batch and return the new state and the loss before it."""

    def mean_loss(params: optax.Params) -> jax.Array:
        logits = state.apply_fn({"params": params}, images)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    loss, gradients = jax.value_and_grad(mean_loss)(state.params)
    return state.apply_gradients(grads=gradients), loss  # type: ignore[no-untyped-call]


def train(steps: int, seed: int = 0, batch_size: int = 32) -> tuple[TrainState, float, float]:
    """Train on the digits.

    Args:
      steps: number of steps.
      seed: of the initial weights and of the order of the data.
      batch_size: examples in a batch.

    Returns:
      The final state, and the loss and accuracy on the validation part.
    """
    dataset = load_digits()
    part = jax.device_put(dataset.parts["train"])
    rate = RECOMMENDED_RATES["riemannian_adamw"]
    optimizer = ro.riemannian_adamw(warmup_cosine(rate, steps), record=True)
    model = MLP()
    params = model.init(jax.random.key(seed), jnp.zeros((1, *dataset.input_shape)))["params"]
    state = TrainState.create(  # type: ignore[no-untyped-call]
        apply_fn=model.apply, params=params, tx=optimizer
    )
    for step in range(steps):
        batch = batch_indices(dataset.num_train, batch_size, seed, step)
        state, _ = train_step(state, *dataset.take(part, jnp.asarray(batch)))
    validation = jax.device_put(dataset.parts["validation"])
    images, labels = dataset.take(validation, jnp.asarray(dataset.evaluation_indices("validation")))
    logits = state.apply_fn({"params": state.params}, images)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == labels)
    return state, float(losses.mean()), float(accuracy)


def main(argv: Sequence[str] | None = None) -> int:
    """Train, print the scores and the metric of each layer, and return the exit status."""
    parser: argparse.ArgumentParser = Parser(prog="python -m riemann_optax.examples.linen_loop")
    parser.add_argument("--steps", type=number(1, kind=int), default=400)
    parser.add_argument("--seed", type=SEED, default=0)
    try:
        arguments = parser.parse_args(argv)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    state, loss, accuracy = train(arguments.steps, arguments.seed)
    print(f"validation loss {loss:.4f}, accuracy {accuracy:.2%} after {arguments.steps} steps")
    for layer, statistics in ro.metric_statistics(state.opt_state, state.params).items():
        low, mean, high = (statistics[f"metric_{name}"] for name in ("min", "mean", "max"))
        print(f"E of {layer:28} {low:.1e} to {high:.1e}, mean {mean:.1e}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
