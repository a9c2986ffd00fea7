"""Part II: systems for machine learning. The only half that imports torch."""
