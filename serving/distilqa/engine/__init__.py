"""ONNX Runtime, on the CPU here, on a GPU in `distilqa.engine.cuda`. Nothing else knows it."""
