"""A byte-level language model, each optimiser at its best rate: ``python -m benchmarks.language_model``."""
