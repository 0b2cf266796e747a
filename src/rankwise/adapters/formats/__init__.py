"""File formats of adapters, one module for each program that defines one."""
