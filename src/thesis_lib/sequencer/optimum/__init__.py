"""What nobody can beat: proven bounds, and the best schedule that knows the future."""
