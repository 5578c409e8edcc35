"""Models, one nn.Module a file. A score is a dot product of a user and an item, so all items rank in one matmul."""
