"""The forward pass of training: the model's own code, the fused twin of it, and what both keep in memory."""
