"""Pages made from what runs left on disk, and from nothing else."""
