"""Steps to a frozen target, each optimiser tuned alike: ``python -m benchmarks.time_to_target``."""
