"""Models: geometry, checkpoint on disk, modules."""
