"""Fused low-bit matrix products on this computer's CPU."""
