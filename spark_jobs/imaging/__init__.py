"""Image files to rows: reading, decoding, fitting to one size."""
