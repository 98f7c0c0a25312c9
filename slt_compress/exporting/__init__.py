"""A ticket becomes a folder."""
