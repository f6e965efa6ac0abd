"""What lets other libraries and hookbus work together, as far as it can be shown without them."""
