"""A streamed model behind an OpenAI-compatible API."""
