"""The command line: parse arguments, call a command, print its result. Only this folder imports typer and rich."""
