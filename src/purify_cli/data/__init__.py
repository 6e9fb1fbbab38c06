"""Labelled texts: reading them, splitting them, and turning them into batches."""
