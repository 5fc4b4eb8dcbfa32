"""Figures: every one is a function from data to a matplotlib Figure. `style` holds what they share."""
