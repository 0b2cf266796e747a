"""What the data report counts."""
