"""`python -m qsim` is the command `qsim`."""

from qsim.cli import main

main(prog_name="qsim")
