"""Benchmarks, run from the checkout: ``python -m benchmarks.<name>``."""

# Of the suites, in the order in which they are measured and reported: each a module here, or of `benchmarks.gpu`.
PARTS = ("claims", "kernels", "serving", "quality", "cost")
GPU_PARTS = ("runs", "throughput", "answers", "traffic")
