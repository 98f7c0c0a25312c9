"""Metrics, controls, the report and the proof."""
