"""Settings: frozen pydantic models that refuse unknown keys, and the YAML files and flags they are read from.

This folder imports pydantic, ruamel.yaml and regex, and never torch.
"""
