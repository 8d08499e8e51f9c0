"""Networks of the tasks that the example models have no counterpart of."""

import itertools

import jax
import jax.numpy as jnp
from flax import nnx


class AutoEncoder(nnx.Module):
    """A deep tanh auto-encoder whose narrowest layer has 8 units; the read-out is linear."""

    def __init__(self, sizes: tuple[int, ...] = (64, 64, 32, 8, 32, 64, 64), *, rngs: nnx.Rngs) -> None:
        """Draw Glorot-normal weights, as deep tanh networks want them."""
        self.layers = nnx.List(
            nnx.Linear(fan_in, fan_out, kernel_init=nnx.initializers.glorot_normal(), rngs=rngs)
            for fan_in, fan_out in itertools.pairwise(sizes)
        )

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Map images ``[batch, pixels]`` to their reconstructions."""
        *hidden, last = self.layers
        for layer in hidden:
            inputs = jnp.tanh(layer(inputs))
        return last(inputs)


class Mixer(nnx.Module):
    """An MLP-mixer: perceptrons that mix patches and perceptrons that mix channels take turns.

    Tolstikhin et al, "MLP-Mixer: An all-MLP Architecture for Vision", NeurIPS, 2021.
    """

    def __init__(
        self,
        num_classes: int,
        patches: int = 16,
        pixels: int = 4,
        width: int = 32,
        depth: int = 2,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        """Draw the weights of an embedding, ``depth`` blocks and a read-out."""
        self.embed = nnx.Linear(pixels, width, rngs=rngs)
        self.blocks = nnx.List(
            nnx.Dict(
                patch_norm=nnx.LayerNorm(width, rngs=rngs),
                patch_in=nnx.Linear(patches, 2 * patches, rngs=rngs),
                patch_out=nnx.Linear(2 * patches, patches, rngs=rngs),
                channel_norm=nnx.LayerNorm(width, rngs=rngs),
                channel_in=nnx.Linear(width, 2 * width, rngs=rngs),
                channel_out=nnx.Linear(2 * width, width, rngs=rngs),
            )
            for _ in range(depth)
        )
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, num_classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Map images ``[batch, 8, 8, 1]`` to logits."""
        batch = images.shape[0]
        squares = images.reshape(batch, 4, 2, 4, 2).transpose(0, 1, 3, 2, 4)
        stream = self.embed(squares.reshape(batch, 16, 4))
        for block in self.blocks:
            mixed = block["patch_norm"](stream).swapaxes(1, 2)
            mixed = block["patch_out"](nnx.gelu(block["patch_in"](mixed)))
            stream = stream + mixed.swapaxes(1, 2)
            mixed = block["channel_norm"](stream)
            stream = stream + block["channel_out"](nnx.gelu(block["channel_in"](mixed)))
        return self.head(self.norm(stream).mean(axis=1))


class LeNet(nnx.Module):
    """Two 3x3 convolutions, each followed by a rectifier and 2x2 maximum pooling, and a perceptron.

    After LeCun et al, "Gradient-Based Learning Applied to Document Recognition", Proc. IEEE, 1998,
    with rectifiers and smaller kernels.
    """

    def __init__(
        self,
        side: int,
        num_classes: int,
        channels: tuple[int, ...] = (8, 16),
        hidden: int = 64,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        """Draw the weights; a kernel has the usual shape ``[3, 3, inputs, outputs]``."""
        self.convolutions = nnx.List(
            nnx.Conv(fan_in, fan_out, (3, 3), rngs=rngs)
            for fan_in, fan_out in itertools.pairwise((1, *channels))
        )
        self.hidden = nnx.Linear((side // 2 ** len(channels)) ** 2 * channels[-1], hidden, rngs=rngs)
        self.head = nnx.Linear(hidden, num_classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Map images ``[batch, side, side, 1]`` to logits."""
        for layer in self.convolutions:
            images = _halved(nnx.relu(_convolved(images, layer.kernel[...]) + layer.bias[...]))
        return self.head(nnx.relu(self.hidden(images.reshape(len(images), -1))))


def _convolved(images: jax.Array, kernel: jax.Array) -> jax.Array:
    """Return the ``SAME`` convolution as a matrix product: in a loop on a CPU XLA's own is far slower."""
    rows, columns = images.shape[1:3]
    high, wide, inputs, outputs = kernel.shape
    padded = jnp.pad(images, ((0, 0), (high // 2, high // 2), (wide // 2, wide // 2), (0, 0)))
    shifted = [padded[:, i : i + rows, j : j + columns] for i in range(high) for j in range(wide)]
    return jnp.concatenate(shifted, axis=-1) @ kernel.reshape(high * wide * inputs, outputs)


def _halved(images: jax.Array) -> jax.Array:
    """Return the largest of each 2x2 square."""
    batch, rows, columns, channels = images.shape
    return images.reshape(batch, rows // 2, 2, columns // 2, 2, channels).max(axis=(2, 4))


class VariationalAutoEncoder(nnx.Module):
    """A perceptron to mean and log-variance of a Gaussian code, and one back to the logits of pixels.

    Kingma and Welling, "Auto-Encoding Variational Bayes", ICLR, 2014.
    """

    def __init__(self, pixels: int = 64, width: int = 64, code: int = 8, *, rngs: nnx.Rngs) -> None:
        """Draw the weights."""
        self.encoder_in = nnx.Linear(pixels, width, rngs=rngs)
        self.encoder_out = nnx.Linear(width, 2 * code, rngs=rngs)
        self.decoder_in = nnx.Linear(code, width, rngs=rngs)
        self.decoder_out = nnx.Linear(width, pixels, rngs=rngs)

    def __call__(self, inputs: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return logits of the pixels, and the code's mean and log-variance, of ``[batch, pixels]``."""
        mean, log_variance = jnp.split(self.encoder_out(jnp.tanh(self.encoder_in(inputs))), 2, axis=-1)
        code = mean + jnp.exp(log_variance / 2) * noise
        return self.decoder_out(jnp.tanh(self.decoder_in(code))), mean, log_variance
