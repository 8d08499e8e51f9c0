"""The same run again, on eight devices, and under the oldest releases: what differs, and by how much.

    python -m tests.trust.reproducible                                # again, and on eight devices
    python -m tests.trust.reproducible --oldest .venv-oldest/bin/python  # and under the releases of another

Each entry of the contract suite takes some steps on a quadratic of a matrix and a vector, compiled, every run
in a process of its own. A rerun has to give the same bits. Otherwise the order of sums differs, and with it
the last places: the largest difference of a weight is compared with the longest way that a weight has gone.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

import riemann_optax as ro

RESULTS = Path(__file__).parent / "results/reproducible.json"
STEPS = 20
# In bfloat16 a value beside a tie may round the other way, by 2**-8 of itself.
WIDE = {"mu_dtype": None, "nu_dtype": None, "basis_dtype": None}
IN_FLOAT32 = {
    "riemannian_eigenbasis": lambda: ro.riemannian_eigenbasis(1e-3, alpha=1.0, update_every=2, **WIDE)
}
TOLERANCE = {"again": 0.0, "eight devices": 1e-4, "oldest releases": 1e-4}


def final_weights(name: str, devices: int) -> np.ndarray:
    """Return the weights after the steps, and those at the start in front of them, as float32."""
    import jax
    import jax.numpy as jnp
    import optax
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    from tests.contract.problem import loss, real_loss
    from tests.contract.registry import ENTRIES

    generator = np.random.default_rng(0)
    start = {"kernel": generator.normal(size=(16, 8)), "bias": generator.normal(size=8)}
    start = {key: value.astype(np.float32) for key, value in start.items()}
    entry = ENTRIES[name]
    tx = IN_FLOAT32.get(name, entry.build)()

    @jax.jit
    def step(weights: Any, state: Any, scale: Any) -> Any:
        gradients = jax.tree.map(lambda g: g * scale, jax.grad(real_loss)(weights))
        updates, state = tx.update(gradients, state, weights, **entry.extra_args(loss))
        return optax.apply_updates(weights, updates), state

    mesh = jax.make_mesh((devices,), ("x",), axis_types=(AxisType.Auto,))
    shardings = {"kernel": PartitionSpec(None, "x"), "bias": PartitionSpec("x")}
    shardings = {key: NamedSharding(mesh, spec) for key, spec in shardings.items()}
    weights = jax.device_put(start, shardings)
    state = jax.jit(tx.init)(weights)
    for index in range(STEPS):
        weights, state = step(weights, state, jnp.float32(1 + 0.5 * (index % 3)))
    return np.stack([np.concatenate([tree["kernel"].ravel(), tree["bias"]]) for tree in (start, weights)])


def tell(names: list[str] | None, devices: int) -> None:
    """Print versions and the bits of all weights, as JSON."""
    import jax

    jax.config.update("jax_num_cpu_devices", devices)
    import optax

    from tests.contract.registry import ENTRIES

    bits = {name: final_weights(name, devices).view(np.uint32).tolist() for name in names or ENTRIES}
    print(json.dumps({"jax": jax.__version__, "optax": optax.__version__, "bits": bits}))


def ask(names: list[str] | None, devices: int = 1, python: str = sys.executable) -> dict[str, Any]:
    """Let another process run the entries; return what it tells, with the weights as arrays."""
    command = [python, "-m", "tests.trust.reproducible", "--tell", str(devices), "--only", *(names or [])]
    root = Path(__file__).parents[2]
    told = subprocess.run(command, cwd=root, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(told.stdout)
    found["weights"] = {
        name: np.asarray(bits, np.uint32).view(np.float32).astype(np.float64)
        for name, bits in found.pop("bits").items()
    }
    return found


def differences(one: dict[str, Any], other: dict[str, Any]) -> dict[str, float]:
    """Return for each entry the largest difference of a weight, over the longest way of one."""
    found = {}
    for name, (start, end) in one["weights"].items():
        way = np.max(np.abs(end - start))
        found[name] = float(f"{np.max(np.abs(other['weights'][name][1] - end)) / way:.3g}")
    return found


def compare(names: list[str] | None = None, oldest: str | None = None) -> dict[str, Any]:
    """Return the differences of each comparison, and the releases compared."""
    first = ask(names)
    others = {"again": ask(names), "eight devices": ask(names, devices=8)}
    if oldest is not None:
        others["oldest releases"] = ask(names, python=oldest)
    found: dict[str, Any] = {"steps": STEPS}
    found["versions"] = {what: {key: run[key] for key in ("jax", "optax")} for what, run in others.items()}
    return found | {"differences": {what: differences(first, run) for what, run in others.items()}}


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Return a record with what has been compared anew, by name."""
    differences = {what: dict(values) for what, values in old["differences"].items()}
    for what, values in new["differences"].items():
        differences[what] = differences.get(what, {}) | values
    return old | {"versions": old["versions"] | new["versions"], "differences": differences}


def broken(found: dict[str, Any]) -> list[str]:
    """Return every entry that differs by more than the tolerance of a comparison."""
    return [
        f"{what}: {name} differs by {value}"
        for what, values in found["differences"].items()
        for name, value in values.items()
        if not value <= TOLERANCE[what]
    ]


def main() -> None:
    """Compare, print what differs by too much, and write the record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--oldest", metavar="PYTHON", help="interpreter of an environment with other releases"
    )
    parser.add_argument(
        "--only", nargs="*", metavar="ENTRY", help="of the contract suite; the record keeps the others"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--tell", type=int, metavar="DEVICES", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.tell is not None:
        tell(options.only, options.tell)
        return
    found = compare(options.only, options.oldest)
    print("\n".join(broken(found)) or "all within the tolerances")
    if options.only is not None and options.out.exists():  # the record keeps the others
        found = merged(json.loads(options.out.read_text()), found)
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
