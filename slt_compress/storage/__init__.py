"""Bytes on disk: whole or absent, and read without trust."""
