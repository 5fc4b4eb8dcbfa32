"""The path that every CPU has: nothing here names an instruction."""
