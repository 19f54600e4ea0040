"""Several processes that train together: how they are started, connect, agree, and stop.

Imports `engine`, `files` and what is below them. `launch` and what handles signals do without JAX.
"""
