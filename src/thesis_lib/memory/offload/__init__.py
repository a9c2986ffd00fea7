"""A model that is larger than the device: plan, certify, stream."""
