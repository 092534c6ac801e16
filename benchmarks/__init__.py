"""Benchmarks, run from the checkout: ``python -m benchmarks.<name>``."""

# Of the suite, in the order in which they are measured and reported: each a module here.
PARTS = ("claims", "kernels", "serving", "quality", "cost")
