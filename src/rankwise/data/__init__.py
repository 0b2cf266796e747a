"""From a line of a file to a batch of tensors: Example, Rendering, Tokens, Batch; and the data report."""
