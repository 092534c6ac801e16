"""Whether a model may be released: what it answers beside fp32 and PyTorch, and how fast it is."""
