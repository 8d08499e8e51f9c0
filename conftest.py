"""JAX settings for every test and doctest; they must be made before JAX starts its backend."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # after the environment, which JAX reads when it is imported

jax.config.update("jax_num_cpu_devices", 8)  # eight fake devices, for the sharding tests
