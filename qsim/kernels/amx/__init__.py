"""The path of tile registers: AMX multiplies 16 tokens by 16 output rows in one instruction."""
