"""What learns, adapters or the whole model: how it is trained, written and read. `registry.method_of` is the way in."""
