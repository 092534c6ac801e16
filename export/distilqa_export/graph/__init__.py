"""From a checkpoint to a graph: traced as portable ONNX, fused for the CPU, or packed for a GPU."""
