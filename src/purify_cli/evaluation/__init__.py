"""Prediction, metrics and intervals."""
