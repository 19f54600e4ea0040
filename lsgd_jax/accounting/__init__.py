"""What a method sends, and how long networks take for it: traced, never measured on one.

Imports `engine` and what is below it.
"""
