"""A policy in front of a running service: events, asyncio, ASGI, decision log."""
