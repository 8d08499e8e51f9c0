"""Benchmarks: the evidence behind the README, each a module run with ``python -m``."""
