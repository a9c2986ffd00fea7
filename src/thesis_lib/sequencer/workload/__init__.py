"""Where transactions come from, and what is known of them before they run."""
