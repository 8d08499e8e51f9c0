"""One table of wrong arguments: each argument of each public maker, with values it must refuse."""

import inspect
import math
import re

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import riemann_optax as ro

MAKERS = {
    name: value
    for module in (ro, ro.phi, ro.anchor)
    for name, value in vars(module).items()
    if name in getattr(module, "__all__", ())
    and inspect.isfunction(value)
    and inspect.isclass(inspect.signature(value).return_annotation)
    and issubclass(inspect.signature(value).return_annotation, optax.GradientTransformation)
}
FIELDS = {
    name: getattr(ro.fields, name)
    for name in ("Absolute", "Constant", "LogNormal", "Multiplicative", "Quadratic")
}
RULES = {name: getattr(ro, name) for name in ("dormant_units", "silent_units", "least_useful_units")}
MAKERS |= RULES | FIELDS | {"Elementwise": ro.fields.Elementwise, "Coupled": ro.fields.Coupled}

NOT_A_NUMBER = [math.nan, math.inf, "0.5", [0.5], True]
NO_TRANSFORMATION = [None, abs, "activity", ro.phi.activity]
POSITIVE = [0.0, -1.0, *NOT_A_NUMBER, None]
NOT_NEGATIVE = [-1e-9, -1.0, np.float32(-2.0), *NOT_A_NUMBER, None]
SHARE = [-0.1, 1.1, *NOT_A_NUMBER, None]
COUNT = [0, -1, *NOT_A_NUMBER, None]
CHOICE = ["", "Metric", "layer", 3]
FLAG = ["no", 1, 0.5, None]
BAD = {
    "accumulator_dtype": [jnp.int32, jnp.complex64, "float31"],
    "alpha": NOT_NEGATIVE,
    "anchor": NO_TRANSFORMATION,
    "base": NO_TRANSFORMATION,
    "basis_decay": [-0.1, 1.0, *NOT_A_NUMBER],
    "basis_dtype": [jnp.int32, jnp.complex64, "float31"],
    "axes": ["torch", 3],
    "b1": [-0.1, 1.0, *NOT_A_NUMBER, None],
    "b2": [-0.1, 1.0, *NOT_A_NUMBER, None],
    "block_size": [0, -1, *NOT_A_NUMBER],
    "copies": [*COUNT, 1.5],
    "correlate": CHOICE,
    "coupling": POSITIVE,
    "damping": POSITIVE,
    "decay": [-0.1, 1.0, np.float32(1.0), *NOT_A_NUMBER],
    "decay_in_metric": FLAG,
    "default": NO_TRANSFORMATION,
    "down": NOT_NEGATIVE,
    "deviation_rate": POSITIVE,
    "dtype": [jnp.int32, jnp.complex64],
    "eps": NOT_NEGATIVE,
    "eps_root": NOT_NEGATIVE,
    "every": [*COUNT, 1.5],
    "examples_per_task": POSITIVE,
    "exponent": [*NOT_A_NUMBER, None],
    "factor": [2.0, None, "phi"],
    "fading": [-0.1, 1.0, *NOT_A_NUMBER, None],
    "field": [2.0, "quadratic"],
    "first": [*COUNT[:-1], 1.5],
    "form": CHOICE,
    "gradient_share": SHARE[:-1],
    "fraction": [0.0, 1.1, -1.0, *NOT_A_NUMBER, None],
    "frozen_from": [1.0, 0.1, *NOT_A_NUMBER, None],
    "from_start": FLAG,
    "function": [2.0, None],
    "high": [0.0, -1.0, *NOT_A_NUMBER],
    "initial_deviation": [0.0, -1.0, *NOT_A_NUMBER],
    "initial_phi": POSITIVE,
    "initial_rate": POSITIVE,
    "initializer": [2.0, "he"],
    "inner": NO_TRANSFORMATION,
    "interval": [*COUNT, 1.5],
    "key": ["0", None, 0.5],
    "kind": CHOICE,
    "largest_change": POSITIVE,
    "leak": FLAG,
    "learning_rate": NOT_NEGATIVE,
    "learning_rate_sgd": POSITIVE,
    "linear_fields": ["mu", 3, ["mu", 3]],
    "longest": [*COUNT, 1.5],
    "limit": POSITIVE,
    "low": [0.0, -1.0, *NOT_A_NUMBER],
    "maturity": NOT_NEGATIVE,
    "max_operations": NOT_NEGATIVE,
    "max_precondition_dim": [*COUNT, 1.5],
    "max_size": [*COUNT[:-1], 1.5],
    "max_state": NOT_NEGATIVE,
    "maximum": [1.1, 0.2, *NOT_A_NUMBER, None],
    "memory": SHARE,
    "meta_rate": NOT_NEGATIVE,
    "minimum": [-0.1, 1.1, *NOT_A_NUMBER, None],
    "mean_rate": POSITIVE,
    "mixing": SHARE,
    "momentum": [-0.1, 1.0, *NOT_A_NUMBER],
    "mu_dtype": [jnp.int32, jnp.complex64, "float31"],
    "multiply_by_parameter_scale": FLAG,
    "nesterov": FLAG,
    "one_sided": FLAG,
    "outgoing": ["head", 3],
    "over": CHOICE,
    "percentile": [0.0, 1.1, *NOT_A_NUMBER, None],
    "phi": NO_TRANSFORMATION[1:],
    "phis": [[abs], [ro.phi.activity], [None]],
    "power": POSITIVE,
    "precision": ["psi", 0.5, ro.phi.activity],
    "prior_deviation": POSITIVE,
    "ratio": [0.0, 1.1, *NOT_A_NUMBER, None],
    "quantiles": [[-0.1], [1.1], [math.nan], ["0.5"], 0.5],
    "rate": NOT_NEGATIVE,
    "record": FLAG,
    "reference": NO_TRANSFORMATION,
    "role": [*CHOICE, None],
    "running": FLAG,
    "rule": [None, abs, "dormant", ro.dormant_units],
    "samples": [-1, 1.5, *NOT_A_NUMBER, None],
    "scale": NOT_NEGATIVE,
    "second_moments": CHOICE,
    "sides": CHOICE,
    "smallest_log_rate": [-100.0, 100.0, *NOT_A_NUMBER, None],
    "state_dtype": [jnp.int32, jnp.complex64, "float31"],
    "staggered": FLAG,
    "storage": CHOICE,
    "steps": [*COUNT, 1.5],
    "squared_fields": ["nu", 3, ["nu", 3]],
    "strength": NOT_NEGATIVE,
    "temperature": NOT_NEGATIVE,
    "threshold": NOT_NEGATIVE,
    "orthonormalisation": CHOICE,
    "precondition_frequency": [*COUNT, 1.5],
    "refresh_budget": POSITIVE[:-1],
    "refresh_together": [*COUNT[:-1], 1.5],
    "settling_steps": [-1, 1.5, *NOT_A_NUMBER],
    "shampoo_beta": [-0.1, 1.0, *NOT_A_NUMBER],
    "tau": SHARE,
    "tx": NO_TRANSFORMATION,
    "up": [-0.1, 1.0, *NOT_A_NUMBER, None],
    "update_every": [*COUNT, 1.5],
    "value": POSITIVE,
    "warmup_steps": [-1, 1.5, *NOT_A_NUMBER, None],
    "weight_decay": [-1.0, *NOT_A_NUMBER],
    "weights": [[1.0, 2.0], [math.nan], 1.0],
    "window": [0.5, *NOT_A_NUMBER, None],
}
# Where a name means something else than it does elsewhere.
OWN = {
    ("bayesian_synapse", "learning_rate"): POSITIVE,
    ("mesu", "window"): POSITIVE,
    ("metaplasticity", "strength"): POSITIVE,
    ("master_weights", "dtype"): [jnp.int32, jnp.complex64, None],
    ("riemannian_sgd", "conformal"): CHOICE,
    ("riemannian_adamw", "conformal"): CHOICE,
    ("riemannian_eigenbasis", "conformal"): CHOICE,
    ("riemannian_schedule_free", "conformal"): CHOICE,
    ("compute_metric", "conformal"): CHOICE,
    ("scale_by_metric", "conformal"): CHOICE,
    ("schedule_free", "b1"): [0.0, 1.0, *NOT_A_NUMBER, None],
    ("riemannian_schedule_free", "b1"): [0.0, 1.0, *NOT_A_NUMBER, None],
    ("schedule_free", "power"): NOT_NEGATIVE,
    ("riemannian_schedule_free", "power"): NOT_NEGATIVE,
    ("attach_field", "field"): [None, 2.0, abs],
    ("retract", "field"): [None, 2.0, abs],
    ("partition_by_kind", "by_kind"): [],  # by the name of its kind: tests/test_misuse.py
    ("multiplicative_geometry", "anchor"): NO_TRANSFORMATION[1:],
    ("in_eigenbasis", "precision"): [],  # goes to JAX as it is
    ("presynaptic_release", "minimum"): [-0.1, *NOT_A_NUMBER, None],
    ("soft_resets", "prior_deviation"): POSITIVE[:-1],
    ("synaptic_caching", "threshold"): POSITIVE,
    ("riemannian_eigenbasis", "update_every"): [*COUNT[:-1], 1.5],
    ("soap", "precondition_frequency"): [*COUNT[:-1], 1.5],
    ("soap", "max_precondition_dim"): [*COUNT[:-1], 1.5],
    ("laplace", "decay"): SHARE,
    ("memory_aware_synapses", "decay"): SHARE,
    ("online_ewc", "decay"): SHARE,
}
UNCHECKED = {"mask"}  # goes to Optax as it is
NEEDED = {
    "rate": 0.1, "anchor": ro.anchor.initial_weights(), "learning_rate": 0.1, "scale": 0.1,
    "temperature": 0.1,
    "field": ro.fields.Quadratic(1.0), "fraction": 0.5, "phi": ro.phi.activity(), "inner": optax.identity(),
    "tx": optax.sgd(0.1), "factor": abs, "base": optax.sgd(0.1), "reference": optax.sgd(0.1),
    "default": optax.sgd(0.1), "function": abs, "exponent": 0.5, "phis": [ro.phi.activity()], "strength": 1.0,
    "rule": ro.dormant_units(), "threshold": 0.1, "limit": 1.0,
}  # fmt: skip


def cases():
    for maker, function in MAKERS.items():
        for argument in inspect.signature(function).parameters:
            if argument in UNCHECKED:
                continue
            for value in OWN.get((maker, argument), BAD.get(argument, ["no line in this table"])):
                # No address in the name: processes that share the tests out must agree on it.
                shown = re.sub(r" at 0x\w+", "", repr(value))
                yield pytest.param(maker, argument, value, id=f"{maker}-{argument}-{shown}"[:80])


@pytest.mark.parametrize(("maker", "argument", "value"), list(cases()))
def test_a_wrong_value_is_refused_by_the_name_of_its_argument(maker, argument, value):
    signature = inspect.signature(MAKERS[maker])
    arguments = {
        name: NEEDED[name]
        for name, parameter in signature.parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
    positional = NEEDED["phis"] if "phis" in signature.parameters else ()
    if argument == "phis":
        positional = value
    else:
        arguments[argument] = value
    with pytest.raises((ValueError, TypeError), match=rf"\b{argument.removesuffix('s')}"):
        MAKERS[maker](*positional, **arguments)
