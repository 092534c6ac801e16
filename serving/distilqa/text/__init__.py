"""Text to token windows, and logits to answers. Knows no model and no network."""
