"""A server of several processes: front ends that share an address, and one that has the model."""
