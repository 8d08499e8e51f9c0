"""The paper's figure: paths of SGD, momentum, Adam and the metric on three valleys.

Run it with ``python -m benchmarks.figure1``.
"""
