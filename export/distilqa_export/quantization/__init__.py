"""From a fused fp32 graph to one in int8 that is exact on every processor."""
