"""The terminal: parse, call a verb, show what it returns. The only home of typer and rich."""
