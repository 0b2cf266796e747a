"""One file per decoder family: how its blocks combine kernels and the model's own modules."""
