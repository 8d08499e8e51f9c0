"""``jit`` by the compiler that users have, where a test doubts what that makes of a program.

The other tests compile as ``conftest.py`` says, which takes half of the time.
"""

import functools

import jax

OPTIONS = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
    "xla_cpu_use_fusion_emitters": True,
}
jit = functools.partial(jax.jit, compiler_options=OPTIONS)
