"""Mutations of every file that is read, and what the readers make of them."""
