"""The one training loop, and the recipes that it reads."""
