"""No public transformation escapes the contract."""

import inspect

import optax

import riemann_optax as ro

from .registry import ENTRIES


def public_transformations(module, prefix=""):
    """Names of the public functions that say they return a gradient transformation."""
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.isfunction(value):
            result = inspect.signature(value).return_annotation
            if inspect.isclass(result) and issubclass(result, optax.GradientTransformation):
                yield prefix + name


def test_every_public_transformation_has_an_entry():
    public = {*public_transformations(ro), *public_transformations(ro.phi, "phi.")}
    assert {"compute_metric", "phi.activity", "riemannian_sgd"} <= public
    assert {name.partition(":")[0] for name in ENTRIES} == public


def test_learning_rates_and_alpha_are_annotated_so_that_optax_finds_them():
    """Optax takes a parameter for a schedule where the annotation is ``ScalarOrSchedule`` itself."""
    for factory, names in (
        (ro.compute_metric, ["alpha"]),
        (ro.riemannian_sgd, ["learning_rate", "alpha"]),
        (ro.riemannian_adamw, ["learning_rate", "alpha"]),
    ):
        for name in names:
            assert inspect.signature(factory).parameters[name].annotation is optax.ScalarOrSchedule
