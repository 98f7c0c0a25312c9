"""A folder becomes a running model."""
