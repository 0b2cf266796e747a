"""What a run leaves on disk, and what it says while it works. Standard library and pydantic only."""
