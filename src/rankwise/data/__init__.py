"""From a line of a file to a batch of tensors: example, segments, tokens, batch."""
