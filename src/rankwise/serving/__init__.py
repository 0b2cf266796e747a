"""A server that answers from adapters over one base, in the form of OpenAI's API."""
