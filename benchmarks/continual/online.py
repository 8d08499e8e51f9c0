"""Images learned online by a network: permuted labels, or noise that grows and inputs that shift."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.continual.chains import (
    DORMANT_CHAIN,
    ISOMETRIC_CHAIN,
    ISOMETRIC_SILENT_CHAIN,
    LONG_ACTIVITY,
    LONG_CHAIN,
    LONG_DORMANT_CHAIN,
    LONG_SILENT_CHAIN,
    ONE_CHAIN,
    SILENT_CHAIN,
    isometric_chain,
    one_chain,
)
from benchmarks.continual.images import Images, Params, draw_network, forward
from benchmarks.continual.job import Job
from benchmarks.continual.measures import DEAD, PROBE, RANK, liveliness
from benchmarks.continual.methods import Scale, online_methods
from benchmarks.continual.network import Network
from benchmarks.continual.renewal import dormant, least_useful, silent
from benchmarks.shared import lanes
from benchmarks.shared.experiment import Method
from benchmarks.shared.tuning import Axis

HIDDEN = (32, 32)
SCALE = Scale(
    alpha=1000.0,
    metric=2.0,
    pull=1e-3,
    noise=2e-3,
    sgd=0.1,
    rmsprop=2e-3,
    adam=2e-3,
    l2=1e-3,
    share=1e-4,
    shake=1e-3,
    gradient_noise=0.02,
)


class Block(NamedTuple):
    """What changes from block to block.

    Attributes:
      pixels: the permutation of the inputs.
      labels: the permutation of the labels.
      spread: standard deviation of the noise on the inputs.
      key: of its batches and noise.
    """

    pixels: jax.Array
    labels: jax.Array
    spread: jax.Array
    key: jax.Array


class Task(NamedTuple):
    """What a seed learns in one task: its batches are made of it in the compiled run, where they are small.

    Attributes:
      rows: which images each step has, shape (steps, batch).
      pixels: the permutation of the inputs.
      labels: of all images, in this task.
      spread: standard deviation of the noise on the inputs.
      key: of that noise.
    """

    rows: jax.Array
    pixels: jax.Array
    labels: jax.Array
    spread: jax.Array
    key: jax.Array


class Form(NamedTuple):
    """How a stream is learned.

    Attributes:
      methods: who takes part.
      hidden: widths of the hidden layers.
      main: the measure whose curve is kept.
      noisy: whether there is noise on the inputs.
      in_turn: whether the lanes are run one after the other, as suits large networks; not those of a method
        whose noise is tuned, which is drawn once for all points where the lanes are side by side.
    """

    methods: Mapping[str, Method]
    hidden: tuple[int, ...]
    main: str
    noisy: bool = False
    in_turn: bool = False


# Images, a seed and the number of a task to what is learned.
DrawTask = Callable[[Images, jax.Array, jax.Array], Task]


def draw(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draw a He-initialised kernel."""
    return jnp.sqrt(2 / shape[0]) * jax.random.normal(key, shape)


NETWORK = Network(lambda params: params, lambda layers: layers, draw)
# Without noise: weights of an image that are idle on one task are wanted on the next.
CHAINS = {
    ONE_CHAIN: one_chain(
        SCALE, NETWORK, least_useful, rate=Axis(8.0), pull=Axis(2e-3), replacement=Axis(1e-3, 4.0)
    ),
    DORMANT_CHAIN: one_chain(
        SCALE, NETWORK, dormant, rate=Axis(12.0), pull=Axis(6e-4), threshold=Axis(0.015)
    ),
    SILENT_CHAIN: one_chain(SCALE, NETWORK, silent, rate=Axis(8.0), pull=Axis(7e-4), above=Axis(0.05)),
}
CHAINS |= {
    long: one_chain(SCALE, NETWORK, renewal, LONG_ACTIVITY, **CHAINS[short].axes)
    for long, short, renewal in (
        (LONG_CHAIN, ONE_CHAIN, least_useful),
        (LONG_DORMANT_CHAIN, DORMANT_CHAIN, dormant),
        (LONG_SILENT_CHAIN, SILENT_CHAIN, silent),
    )
}
ISOMETRIC = {"rate": Axis(8.0), "pull": Axis(7e-6, 10.0)}
CHAINS |= {
    ISOMETRIC_CHAIN: isometric_chain(SCALE, NETWORK, least_useful, replacement=Axis(1e-3, 4.0), **ISOMETRIC),
    ISOMETRIC_SILENT_CHAIN: isometric_chain(SCALE, NETWORK, silent, above=Axis(0.05), **ISOMETRIC),
}
METHODS = online_methods(SCALE, NETWORK) | CHAINS


def label_block(images: Images, seed: jax.Array, number: jax.Array) -> Block:
    """Permute the labels anew in each block: nothing of the one before helps, and nothing has to be kept."""
    labels_key, key = jax.random.split(jax.random.fold_in(jax.random.key(seed), number))
    labels = jax.random.permutation(labels_key, images.classes)
    return Block(jnp.arange(images.inputs.shape[1]), labels, jnp.zeros(()), key)


def noise_block(images: Images, seed: jax.Array, number: jax.Array, noisy: int, variance: float) -> Block:
    """Double the variance of the inputs' noise from block to block, then permute the pixels in each.

    Args:
      images: what is learned.
      seed: of the run.
      number: of the block.
      noisy: blocks at the beginning in which the variance of the noise doubles; then it stays.
      variance: of the noise in the first of them.
    """
    pixels_key, key = jax.random.split(jax.random.fold_in(jax.random.key(seed), number))
    same = jnp.arange(images.inputs.shape[1])
    pixels = jnp.where(number < noisy, same, jax.random.permutation(pixels_key, same))
    doublings = jnp.minimum(number, noisy - 1)
    return Block(pixels, jnp.arange(images.classes), jnp.sqrt(variance * 2.0**doublings), key)


def loss(
    params: Params, inputs: jax.Array, labels: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, list[jax.Array]]]:
    """Return the mean cross-entropy of a batch; its accuracy and the hidden activities."""
    logits, layer_inputs = forward(params, inputs)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)
    return -chosen.mean(), (jnp.mean(logits.argmax(1) == labels), layer_inputs[1:])


@functools.cache
def learner(noisy: bool) -> Callable[..., Any]:
    """Return what learns one task online, the same object for the same question."""

    def learn(build, values, params, state, own):
        """Return loss and accuracy, each from before its step, then what the task has left."""
        task, images = own
        tx = build(values, jax.random.key(0))
        inputs, labels = images[task.rows][..., task.pixels], task.labels[task.rows]
        if noisy:
            inputs = inputs + task.spread * jax.random.normal(task.key, inputs.shape)

        def step(carry, row):
            (params, state), (boundary, *batch) = carry, row
            (value, (right, hidden)), gradients = jax.value_and_grad(loss, has_aux=True)(params, *batch)
            updates, state = tx.update(
                gradients,
                state,
                params,
                activations=hidden,
                obj_fn=lambda p: loss(p, *batch)[0],
                task_boundary=boundary,
            )
            return (jax.tree.map(jnp.add, params, updates), state), (value, right)

        first = jnp.arange(len(inputs)) == 0
        (params, state), (losses, right) = jax.lax.scan(step, (params, state), (first, inputs, labels))
        probe = [rows.reshape(-1, *rows.shape[2:])[:PROBE] for rows in (inputs, labels)]
        _, (at_end, hidden) = loss(params, *probe)
        return params, state, jnp.stack([losses.mean(), right.mean(), at_end, *liveliness(hidden)])

    return learn


def begin(seed: jax.Array, layers: tuple[int, ...]) -> tuple[Params, jax.Array]:
    """Return the initial network of a seed, and the key of an optimiser's noise."""
    network_key, noise_key = jax.random.split(jax.random.key(seed))
    return draw_network(network_key, layers), noise_key


def learned(job: Job, draw_task: DrawTask, tasks: int, form: Form) -> list[lanes.Scores]:
    """Learn tasks online, one after the other.

    Args:
      job: what is run.
      draw_task: from images, seed and number to a task.
      tasks: how many.
      form: how.
    """
    images = job.images
    layers = (images.inputs.shape[1], *form.hidden, images.classes)
    seeds = jnp.asarray(job.seeds)
    draw_all = jax.jit(jax.vmap(functools.partial(draw_task, images), (0, None)))

    def drawn() -> Iterator[Task]:
        for number in range(tasks):
            yield draw_all(seeds, number)
            job.advance(1 / tasks)

    params, keys = jax.jit(jax.vmap(lambda seed: begin(seed, layers)))(seeds)
    method = form.methods[job.method]
    measured = lanes.learned(
        learner(form.noisy),
        method.make,
        job.points,
        params,
        keys,
        drawn(),
        shared=jnp.asarray(images.inputs),
        in_turn=form.in_turn and "noise" not in method.axes,
    )
    # Each points x seeds x tasks x measures.
    return [scores(of_point, form.main) for of_point in np.stack([*measured], 2).astype(np.float64)]


def scores(measured: np.ndarray, main: str) -> lanes.Scores:
    """Sum up measures of shape (seeds, tasks, measures), in the order of :func:`learner`."""
    losses, right, at_end, ranks, dead = np.moveaxis(measured, -1, 0)
    blocks = {"loss": losses, "accuracy": 100 * right, "accuracy at end of task": 100 * at_end}
    return lanes.scores(blocks, main, ends={RANK: ranks, DEAD: dead})


def drawing(steps: int, batch: int, noisy: int, variance: float) -> DrawTask:
    """Return tasks of steps on images drawn at random; ``noisy`` and ``variance`` as of :func:`run`."""

    def draw_task(images: Images, seed: jax.Array, number: jax.Array) -> Task:
        if noisy:
            block = noise_block(images, seed, number, noisy, variance)
        else:
            block = label_block(images, seed, number)
        choice_key, noise_key = jax.random.split(block.key)
        rows = jax.random.randint(choice_key, (steps, batch), 0, len(images.labels))
        labels = block.labels[jnp.asarray(images.labels)]
        return Task(rows, block.pixels, labels, block.spread, noise_key)

    return draw_task


def run(
    job: Job, *, blocks: int, steps: int, batch: int = 16, noisy: int = 0, variance: float = 0.0
) -> list[lanes.Scores]:
    """Learn all blocks online.

    Args:
      job: what is run.
      blocks: tasks, or stretches of the same noise.
      steps: per block.
      batch: examples per step.
      noisy: as of :func:`noise_block`; at 0 it is the labels that are permuted.
      variance: as of :func:`noise_block`.
    """
    main = "loss" if noisy else "accuracy"
    form = Form(METHODS, HIDDEN, main, noisy=noisy > 0)
    return learned(job, drawing(steps, batch, noisy, variance), blocks, form)
