"""Part II: systems for machine learning. The only half that imports torch."""

import warnings

# transformers imports tqdm, which in a notebook asks for widgets that a printed book
# could not show.
warnings.filterwarnings("ignore", message="IProgress not found")
