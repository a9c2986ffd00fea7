"""Part I: machine learning for a deterministic database."""
