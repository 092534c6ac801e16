"""What is written beside the models."""
