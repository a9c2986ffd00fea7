"""How weights are stored in fewer bytes: NF4, int8, few bits, low rank, lossless."""
