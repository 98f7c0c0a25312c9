"""Campaigns: processes that are killed, interrupted, starved and doubled, and what is left."""
