"""Programs that read exports, a file each: what it does with adapters, how it is used, and how it is asked."""
