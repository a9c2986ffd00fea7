"""A streamed model for many clients: shared passes, an OpenAI-compatible API."""
