"""Files, cache folder, memory, signals: what the operating system gives."""
