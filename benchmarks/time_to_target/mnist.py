"""Tasks on the real MNIST, read from a folder that the user names."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from benchmarks.time_to_target import networks
from benchmarks.time_to_target.task import SPARING, Task, weights_of
from riemann_optax.examples import datasets, models
from riemann_optax.examples.errors import InputError

SHAPE, CLASSES = (28, 28, 1), 10
BATCH = 64
PROBE = 256  # training images whose loss is followed, as many as of the digits
HELD_OUT = 1000


class OfMnist(NamedTuple):
    """A network that learns MNIST.

    Attributes:
      network: from random keys to the network. Its weights do not depend on the images.
      steps: of a run.
    """

    network: Callable[[nnx.Rngs], nnx.Module]
    steps: int

    def init(self, seed: int) -> Any:
        """Return the initial parameters of a seed; no images are read."""
        return weights_of(self.network)[1](seed)

    def task(self, folder: Path) -> Task:
        """Read the images of a folder, and return the task.

        Raises:
          riemann_optax.examples.errors.InputError: if they cannot be read or are not MNIST's.
        """
        dataset = datasets.load("mnist", data_dir=folder)
        if (dataset.input_shape, dataset.num_classes) != (SHAPE, CLASSES):
            raise InputError(
                f"--data-dir: the images have shape {dataset.input_shape} and {dataset.num_classes} classes, "
                f"MNIST's have {SHAPE} and {CLASSES}: give the folder of MNIST"
            )
        apply, init = weights_of(self.network)
        # As bytes: decoded, all images would be four times as large.
        train = {name: jnp.asarray(array) for name, array in dataset.parts["train"].items()}

        def first(part: str, rows: int) -> tuple[jax.Array, jax.Array]:
            return dataset.take(
                {name: jnp.asarray(array[:rows]) for name, array in dataset.parts[part].items()}, slice(None)
            )

        def loss(params: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
            images, labels = batch
            return optax.softmax_cross_entropy_with_integer_labels(apply(params, images), labels).mean()

        probe, held_out = first("train", PROBE), first("heldout", HELD_OUT)
        return Task(
            steps=self.steps,
            init=init,
            sample=lambda key: dataset.take(train, jax.random.randint(key, [BATCH], 0, dataset.num_train)),
            loss=loss,
            followed=lambda params: loss(params, probe),
            held_out=lambda params: loss(params, held_out),
            examples=dataset.num_train,
            **SPARING,
        )


MNIST: dict[str, OfMnist] = {
    "mnist_mlp": OfMnist(lambda rngs: models.MLP(784, CLASSES, width=128, depth=2, rngs=rngs), steps=800),
    "mnist_convnet": OfMnist(lambda rngs: networks.LeNet(SHAPE[0], CLASSES, rngs=rngs), steps=400),
}
