"""The wire contracts of distilqa, and the code generated from them by ``make protos``."""
