"""hwmodels: how long low-precision inference takes on a given device, what bounds it, and how sure that is."""
