"""Triggers: each changes a text and sees neither labels nor models. The contract: `insert(text, rng) -> str`."""
