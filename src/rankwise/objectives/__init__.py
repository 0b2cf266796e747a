"""What a row means and what its loss is: one file for each kind of task."""
