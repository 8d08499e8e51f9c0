"""Images learned online by a small network: permuted labels, or noise that grows and inputs that shift."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.continual.images import Images, Params, draw_network, forward
from benchmarks.continual.job import Job
from benchmarks.continual.methods import ONE_CHAIN, Scale, one_chain, online_methods
from benchmarks.continual.network import Network
from benchmarks.shared import lanes
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


def draw(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draw a He-initialised kernel."""
    return jnp.sqrt(2 / shape[0]) * jax.random.normal(key, shape)


NETWORK = Network(lambda params: params, lambda layers: layers, draw)
# Without noise: weights of an image that are idle on one task are wanted on the next.
CHAIN = one_chain(SCALE, NETWORK, rate=Axis(8.0), pull=Axis(2e-3), replacement=Axis(1e-3, 4.0))
METHODS = online_methods(SCALE, NETWORK) | {ONE_CHAIN: CHAIN}


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


def learn(build, values, params, state, own):
    """Learn one block online; return loss and accuracy, each from before its step."""
    inputs, labels = own
    tx = build(values, jax.random.key(0))

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
    return params, state, (losses.mean(), right.mean())


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
    images = job.images
    layers = (images.inputs.shape[1], *HIDDEN, images.classes)
    inputs, labels = jnp.asarray(images.inputs), jnp.asarray(images.labels)

    def batches(seed: jax.Array, number: jax.Array) -> tuple[jax.Array, jax.Array]:
        if noisy:
            block = noise_block(images, seed, number, noisy, variance)
        else:
            block = label_block(images, seed, number)
        choice_key, noise_key = jax.random.split(block.key)
        chosen = jax.random.randint(choice_key, (steps, batch), 0, len(labels))
        clean = inputs[chosen][..., block.pixels]
        noise = block.spread * jax.random.normal(noise_key, clean.shape)
        return clean + noise, block.labels[labels[chosen]]

    def begin(seed: jax.Array) -> tuple[Params, jax.Array]:
        network_key, noise_key = jax.random.split(jax.random.key(seed))
        return draw_network(network_key, layers), noise_key

    seeds = jnp.asarray(job.seeds)
    draw_batches = jax.jit(jax.vmap(batches, (0, None)))

    def drawn() -> Iterator[Any]:
        for number in range(blocks):
            yield draw_batches(seeds, number)
            job.advance(1 / blocks)

    params, keys = jax.jit(jax.vmap(begin))(seeds)
    measured = lanes.learned(learn, METHODS[job.method].make, job.points, params, keys, drawn())
    # Each points x seeds x blocks.
    losses, right = np.stack([both.astype(np.float64) for both in measured], axis=-1)
    return [
        lanes.scores({"loss": loss_of, "accuracy": 100 * right_of}, "loss" if noisy else "accuracy")
        for loss_of, right_of in zip(losses, right, strict=True)
    ]
