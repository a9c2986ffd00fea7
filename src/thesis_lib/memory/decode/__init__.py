"""Text from a streamed model: token by token, by speculation, or several at once."""
