"""What a Python program or a notebook calls: training on rows in memory, with progress, and a run to ask and plot."""
