"""What a reader takes away of a rendered book: PDF, EPUB, slides, notebooks."""
