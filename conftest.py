"""JAX settings for every test and doctest, made before JAX starts its backend; and which tests are slow."""

import gc
import os
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# On a busy machine a fake device can wait for the others longer than the 40 seconds after which XLA gives up
# and aborts the process. Compiling takes half as long without optimisations and with the older emitters, and
# a sixth less in one part; the tests that doubt the compiler ask for that of users (``tests/as_users.py``).
# JAX stops at a flag that it does not know, so releases to come are not given these. Your own flags go last,
# and win.
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_cpu_collective_call_terminate_timeout_seconds=600",
        *(
            [
                "--xla_backend_optimization_level=0",
                "--xla_cpu_use_fusion_emitters=false",
                "--xla_cpu_parallel_codegen_split_count=1",
            ]
            if version("jaxlib").startswith(("0.8.", "0.9.", "0.10."))
            else []
        ),
        os.environ.get("XLA_FLAGS", ""),
    ]
)

# Most of the time goes into compiling. What is kept serves all processes of a run, and the next run. To begin
# anew, remove the folder.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent / ".pytest_cache" / "compiled"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax  # after the environment, which JAX reads when it is imported
import pytest

jax.config.update("jax_num_cpu_devices", 8)  # eight fake devices, for the sharding tests

# Tracing makes many small objects that live: looking through them at every 700 takes a twentieth of the time.
gc.set_threshold(50_000, 20, 50)

ROOT = Path(__file__).parent
# Linux allows a process 65,530 regions of memory. Each compiled program takes some, and where one more is
# refused XLA takes the whole process down.
REGIONS = Path("/proc/self/maps")
MANY_REGIONS = 20_000
# Suites that try every public transformation, programs, and what compiles for eight devices. The rest, which
# ``-m "not slow"`` runs, is what can be wrong in a stage, a phi or a room by itself.
SLOW = (
    "tests/benchmarks",
    "tests/contract",
    "tests/docs",
    "tests/examples",
    "tests/third_party",
    "tests/trust",
    "tests/checkpoint/test_damage.py",
    "tests/checkpoint/test_growing.py",
    "tests/checkpoint/test_meshes.py",
    "tests/checkpoint/test_transplant.py",
    "tests/eigenbasis/test_sharding.py",
    "tests/eigenbasis/test_turned_valley.py",
    "tests/geometry/test_accuracy.py",
    "tests/geometry/test_properties.py",
    "tests/geometry/test_retraction.py",
    "tests/geometry/test_sharding.py",
    "tests/phi/test_oracles.py",
    "tests/test_alpha_zero.py",
    "tests/test_flow.py",
    "tests/test_learning_alpha.py",
    "tests/test_notebooks.py",
    "tests/test_sharding.py",
    "tests/test_state_placement.py",
    "tests/supply/test_matrix.py",
    "tests/wrappers/test_master_weights.py",
    "tests/wrappers/test_precision.py",
    "riemann_optax/examples",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of the slow suites."""
    for item in items:
        place = item.path.relative_to(ROOT).as_posix()
        if any(place == slow or place.startswith(f"{slow}/") for slow in SLOW):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Drop what JAX has compiled when it is much: it would keep the programs of all tests of a process."""
    yield
    if REGIONS.exists() and REGIONS.read_text().count("\n") > MANY_REGIONS:
        jax.clear_caches()
        gc.collect()
