"""Published rules that the benchmarks compare with, where Optax and this package do not have them already."""
