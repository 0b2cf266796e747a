"""What the user asked for: frozen trees of settings that refuse unknown keys. Pydantic, ruamel.yaml and regex only."""
