"""Benchmarks, run from the checkout: ``python -m benchmarks`` and ``python -m benchmarks.<name>``.

parts/        the parts of the report of a CPU: what the card claims, kernels, the server, answers, cost
gpu/          the same for an NVIDIA GPU
load/         the server under load, also alone: ``python -m benchmarks.load``
accuracy.py   what each step of quantisation costs in answers: ``python -m benchmarks.accuracy``
racing/       how systems are measured side by side
reporting/    what becomes of it: results, tables, plots, the report
results/      reports that were stored
models.py     what is measured; setting.py, suite.py: what was asked for, and how part after part is kept
"""

# In the order in which they are measured and reported: modules of `benchmarks.parts`, and of `benchmarks.gpu`.
PARTS = ("claims", "kernels", "serving", "quality", "cost")
GPU_PARTS = ("runs", "throughput", "answers", "traffic")
