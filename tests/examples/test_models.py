import jax
import jax.numpy as jnp
import numpy as np
import pytest

from riemann_optax.examples import data, datasets, models
from riemann_optax.examples.errors import InputError
from riemann_optax.examples.train import loop


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_bytes(bytes(range(256)) * 20)
    return data.load_text(path, window=16)


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits")


@pytest.mark.parametrize("name", ["mlp", "convnet"])
def test_image_models_map_images_to_class_logits(digits, name):
    model = models.build(name, digits, seed=0)
    logits = model.apply(model.parameters, jnp.ones((3, 8, 8, 1)))
    assert logits.shape == (3, 10)
    assert logits.dtype == jnp.float32


def test_the_convnet_takes_images_of_odd_size_and_colour():
    parts = {
        part: {"images": np.zeros((4, 7, 9, 3), np.uint8), "labels": np.zeros(4, np.int32)}
        for part in data.PARTS
    }
    odd = data.Dataset("odd", "images", parts, (7, 9, 3), 5)
    model = models.build("convnet", odd, seed=0)
    assert model.apply(model.parameters, jnp.ones((2, 7, 9, 3))).shape == (2, 5)


@pytest.mark.parametrize("name", ["mlp", "convnet"])
def test_initial_weights_are_a_function_of_the_seed(digits, name):
    first, again, other = (models.build(name, digits, seed).parameters for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert not np.array_equal(first["head"]["kernel"], other["head"]["kernel"])


def test_the_transformer_cannot_see_the_future(text):
    model = models.build("transformer", text, seed=0)
    apply = jax.jit(model.apply)
    tokens = jax.random.randint(jax.random.key(0), (2, 16), 0, 256)
    logits = apply(model.parameters, tokens)
    assert logits.shape == (2, 16, 256)
    for changed in (15, 9, 1):
        altered = apply(model.parameters, tokens.at[:, changed].add(1))
        np.testing.assert_array_equal(altered[:, :changed], logits[:, :changed])
        # It does see the present, and from everywhere after it the past.
        for later in range(changed, 16):
            assert not np.allclose(altered[:, later], logits[:, later])


def test_the_transformer_knows_positions(text):
    model = models.build("transformer", text, seed=0)
    logits = jax.jit(model.apply)(model.parameters, jnp.full((1, 16), 65))
    assert not np.allclose(logits[0, 3], logits[0, 9], atol=1e-4)


@pytest.mark.parametrize(
    ("name", "fixture", "remedy"),
    [
        ("transformer", "digits", "use --data text"),
        ("convnet", "text", "use --model transformer"),
        ("mlp", "text", "use --model transformer"),
    ],
)
def test_a_model_that_does_not_fit_the_data_is_refused(request, name, fixture, remedy):
    with pytest.raises(InputError, match=remedy):
        models.build(name, request.getfixturevalue(fixture), seed=0)


def test_scores_cover_every_example_once(digits):
    model = models.build("mlp", digits, seed=0)
    problem = loop.Problem(model, digits)
    heldout = digits.parts["heldout"]
    logits = model.apply(model.parameters, heldout["images"] / jnp.float32(16))
    log_probabilities = jax.nn.log_softmax(logits)[np.arange(360), heldout["labels"]]
    scores = problem.evaluate("heldout", model.parameters)
    # 360 examples fill one block of 256 and part of another, whose padding must not count.
    assert scores["loss"] == pytest.approx(-float(log_probabilities.mean()), rel=1e-5)
    correct = np.mean(np.argmax(logits, axis=-1) == heldout["labels"])
    assert scores["accuracy"] == pytest.approx(float(correct), rel=1e-6)


def test_text_is_scored_per_byte(text):
    model = models.build("transformer", text, seed=0)
    problem = loop.Problem(model, text)
    starts = text.evaluation_indices("validation")
    windows = np.stack([text.parts["validation"]["tokens"][start : start + 17] for start in starts]).astype(
        int
    )
    log_probabilities = jax.nn.log_softmax(jax.jit(model.apply)(model.parameters, windows[:, :-1]))
    expected = -np.take_along_axis(np.asarray(log_probabilities), windows[:, 1:, None], axis=-1).mean()
    assert problem.evaluate("validation", model.parameters)["loss"] == pytest.approx(
        float(expected), rel=1e-5
    )
