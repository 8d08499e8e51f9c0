"""Tasks of other kinds than images and text: a sequence that is to be remembered, and a table."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.time_to_target.task import SPARING, Task, batches_of, weights_of


class Recurrent(nnx.Module):
    """A gated recurrent cell over a sequence, and a linear read-out of its last state."""

    def __init__(self, inputs: int = 2, width: int = 32, *, rngs: nnx.Rngs) -> None:
        """Draw the weights."""
        self.cell = nnx.GRUCell(inputs, width, rngs=rngs)
        self.head = nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, sequences: jax.Array) -> jax.Array:
        """Map ``[batch, time, inputs]`` to a number each."""
        state = jnp.zeros([len(sequences), self.cell.hidden_features])
        for time in range(sequences.shape[1]):
            state, _ = self.cell(state, sequences[:, time])
        return self.head(state)[:, 0]


def recurrent() -> Task:
    """The adding problem: the sum of the two numbers of a sequence of 20 that are marked.

    Hochreiter and Schmidhuber, "Long Short-Term Memory", Neural Computation, 1997.
    """
    length, batch = 20, 32
    apply, init = weights_of(lambda rngs: Recurrent(rngs=rngs))

    def draw(key: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
        keys = jax.random.split(key, 3)
        values = jax.random.uniform(keys[0], (count, length))
        half = length // 2
        places = jnp.stack([jax.random.randint(k, [count], 0, half) for k in keys[1:]]) + jnp.array(
            [[0], [half]]
        )
        marks = jax.nn.one_hot(places, length).sum(0)
        return jnp.stack([values, marks], axis=-1), jnp.sum(values * marks, axis=1)

    def loss(params: Any, examples: tuple[jax.Array, jax.Array]) -> jax.Array:
        sequences, sums = examples
        return jnp.mean(jnp.square(apply(params, sequences) - sums))

    probe, held_out = (draw(jax.random.key(k), 256) for k in (10, 11))
    return Task(
        steps=600,
        init=init,
        sample=lambda key: draw(key, batch),
        loss=loss,
        followed=lambda params: loss(params, probe),
        held_out=lambda params: loss(params, held_out),
        **SPARING,
    )


class Rows(NamedTuple):
    """Rows of a table: numbers ``[rows, 8]``, categories ``[rows, 3]`` and what is to be predicted."""

    numbers: jax.Array
    categories: jax.Array
    answers: jax.Array


CATEGORIES = (8, 64, 512)  # values of each column; their frequencies fall like 1/rank


class Table(nnx.Module):
    """Embeddings of the categories beside the numbers, through a perceptron with two hidden layers."""

    def __init__(self, numbers: int = 8, width: int = 64, embedding: int = 8, *, rngs: nnx.Rngs) -> None:
        """Draw the weights."""
        self.embeddings = nnx.List(nnx.Embed(size, embedding, rngs=rngs) for size in CATEGORIES)
        self.first = nnx.Linear(numbers + embedding * len(CATEGORIES), width, rngs=rngs)
        self.second = nnx.Linear(width, width, rngs=rngs)
        self.head = nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, numbers: jax.Array, categories: jax.Array) -> jax.Array:
        """Map rows to a number each."""
        embedded = [embed(categories[:, i]) for i, embed in enumerate(self.embeddings)]
        stream = jnp.concatenate([numbers, *embedded], axis=1)
        stream = nnx.relu(self.second(nnx.relu(self.first(stream))))
        return self.head(stream)[:, 0]


def _table(rows: int) -> Rows:
    """Return a table whose numbers have very different spreads and whose categories are mostly rare."""
    keys = iter(jax.random.split(jax.random.key(0), 8))
    spreads = jnp.logspace(-1, 1, 8)
    numbers = spreads * jax.random.normal(next(keys), [rows, 8])
    categories, effects = [], jnp.zeros(rows)
    for size in CATEGORIES:
        chosen = jax.random.categorical(next(keys), -jnp.log1p(jnp.arange(size)), shape=[rows])
        categories.append(chosen)
        effects += jax.random.normal(next(keys), [size])[chosen]
    scaled = numbers / spreads
    answers = jnp.sin(2 * scaled[:, 0]) * effects + scaled[:, 1] * scaled[:, 2] + jnp.abs(scaled[:, 3])
    return Rows(numbers, jnp.stack(categories, axis=1), answers + 0.1 * jax.random.normal(next(keys), [rows]))


def tabular() -> Task:
    """A table of 4,096 rows with rare categories and columns in different units; squared error."""
    apply, init = weights_of(lambda rngs: Table(rngs=rngs))
    table = _table(4096 + 512)
    train, held_out = (
        jax.tree.map(lambda x, part=part: x[part], table) for part in (slice(4096), slice(4096, None))
    )
    probe = jax.tree.map(lambda x: x[:512], train)

    def loss(params: Any, rows: Rows) -> jax.Array:
        return jnp.mean(jnp.square(apply(params, rows.numbers, rows.categories) - rows.answers))

    return Task(
        steps=800,
        init=init,
        sample=batches_of(train, 64),
        loss=loss,
        followed=lambda params: loss(params, probe),
        held_out=lambda params: loss(params, held_out),
        **SPARING,
    )
