"""Where minibatches come from: arrays on the devices, Grain, a function, TFDS, text.

Imports `cluster`, `engine` and what is below them.
"""
