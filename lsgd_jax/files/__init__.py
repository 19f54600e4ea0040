"""Files as a run leaves and reads them: written whole, locked, checked; and lines that a process prints.

Imports only `lsgd_jax.errors`, and no JAX.
"""
