"""Tables and words of the chapters, from measurements."""
