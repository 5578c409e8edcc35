"""Models, one nn.Module a file; each scores an item for a user as a dot product, so that all items rank in one matmul."""
