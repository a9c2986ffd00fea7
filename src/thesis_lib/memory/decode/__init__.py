"""Text from a streamed model: one prompt, many, or by speculation."""
