"""The kernel families of this package, one file for each library: `FAMILIES` and `ATTENTION` of every module here."""
