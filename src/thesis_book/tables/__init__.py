"""What chapters show and no engineer asks for: tables and words from measurements."""
