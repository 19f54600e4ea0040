"""What is learned: `Task`, and the two that are built in, image classification and language modelling.

Imports `data`, `models` and what is below them.
"""
