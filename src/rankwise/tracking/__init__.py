"""Trackers that people have: TensorBoard, Weights & Biases, MLflow and trackio, each through its own library."""
