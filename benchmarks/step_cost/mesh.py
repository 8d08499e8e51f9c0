"""What an update costs on eight devices: collectives, and the state's bytes on a device against its share.

A program of its own, because the number of (fake) devices has to be set before JAX starts, and timings of one
device should not share the machine with seven others: ``python -m benchmarks.step_cost.mesh``.
"""

import collections
import json
import re
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import optax

DEVICES = 8
SHAPES = {"matrix": (64, 128), "stack": (4, 64, 32), "bias": (128,)}
COLLECTIVES = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"


def measure_in_a_program_of_its_own(names: list[str]) -> dict[str, dict[str, Any]]:
    """Return what :func:`measure` returns, from a fresh interpreter with eight fake devices."""
    command = [sys.executable, "-m", "benchmarks.step_cost.mesh", *names]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return result


def measure(names: list[str]) -> dict[str, dict[str, Any]]:
    """Return, by optimiser, the collectives of an update and the state's bytes per device over the ideal.

    Parameters are fully sharded (FSDP), the state starts from ``jax.jit(tx.init)`` for Optax's optimisers, as
    most training programs start it, and from ``ro.sharding.init`` for ours, as the page on devices says.
    """
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    import riemann_optax as ro
    from benchmarks.step_cost.methods import ALL, METRICS

    specs = {"matrix": ("x", None), "stack": (None, "x", None), "bias": ("x",)}
    mesh = jax.make_mesh((DEVICES,), ("x",), axis_types=(AxisType.Auto,))
    params = {
        name: jax.device_put(jnp.ones(shape), NamedSharding(mesh, PartitionSpec(*specs[name])))
        for name, shape in SHAPES.items()
    }
    result = {}
    with jax.set_mesh(mesh):
        for name in names:
            tx = optax.with_extra_args_support(ALL[name]())
            state = ro.sharding.init(tx, params) if name in METRICS else jax.jit(tx.init)(params)
            program = jax.jit(tx.update).lower(params, state, params).compile().as_text()
            found = re.findall(rf"= \S.*? ({COLLECTIVES})(?:-start)?\(", program)
            arrays = [leaf for leaf in jax.tree.leaves(state) if leaf.size > 1]
            here = sum(leaf.addressable_shards[0].data.nbytes for leaf in arrays)
            ideal = sum(leaf.nbytes for leaf in arrays) / DEVICES
            result[name] = {
                "collectives": dict(collections.Counter(found)),
                "state_bytes_over_ideal": here / ideal if ideal else None,
            }
    return result


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES)
    print(json.dumps(measure(sys.argv[1:])))
