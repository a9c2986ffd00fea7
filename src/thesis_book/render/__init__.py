"""What a reader takes away of a rendered book: the PDF and notebooks."""
