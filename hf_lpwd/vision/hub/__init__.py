"""What a run publishes: its card, uploads, and an app."""
