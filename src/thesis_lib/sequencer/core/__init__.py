"""The values of Part I, the ordered lock table, the event loop."""
