"""What command lines have in common: flags and help, the environment, and one line for whatever ends them early.

Imports `config` and what is below it.
"""
