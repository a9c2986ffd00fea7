"""What a sequencer does with what arrives: drop, reorder, hold, or all of it."""
