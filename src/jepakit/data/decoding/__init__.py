"""An image's bytes to pixels: which kind of file it is, its pages, and what of it is read."""
