"""An eigenbasis on a byte-level language model, and what it costs: ``python -m benchmarks.eigenbasis``.

The record ``results/language_model.json`` was made at commit 082b5fc, where this program still had the name
that the record gives as its command.
"""
