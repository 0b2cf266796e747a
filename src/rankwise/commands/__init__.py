"""One file per verb. Verbs wire the folders below together; they never print, parse or exit."""
