"""How the blocks of each family of decoders are put together, from kernels and the model's own modules."""
