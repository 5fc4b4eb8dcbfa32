"""Predictions beside measured and published numbers that no fit has seen."""
