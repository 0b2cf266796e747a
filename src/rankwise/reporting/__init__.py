"""Pages made from run directories: one file of HTML that asks for nothing, and the same content as JSON."""
