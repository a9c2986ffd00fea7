"""What a model is: its geometry, its checkpoint on disk, its modules."""
