"""Reports made from run directories: one self-contained HTML file, and the same content as JSON."""
