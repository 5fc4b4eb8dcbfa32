"""Fits made offline from measured tables: what writes the files of `hwmodels.calibration`."""
