"""The interactive parts of the book: their data, and the element that they grow in."""
