"""From a PyTorch checkpoint to a verified ONNX bundle.

export.py       the steps, in their order
graph/          the checkpoint as a graph: traced, fused for the CPU, packed for a GPU
quantization/   int8 that is exact on every processor
gate/           whether a model may be released
writing/        the bundle, its card, an archive of it
samples.py      the packaged questions and passages
"""
