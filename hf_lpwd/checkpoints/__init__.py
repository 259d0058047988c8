"""Checkpoints that are complete or absent, and runs that survive interruptions."""
