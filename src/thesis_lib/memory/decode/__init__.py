"""Text from a streamed model: token by token, or by speculation."""
