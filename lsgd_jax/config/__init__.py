"""From flags to objects: the only place that knows `Config`.

Imports everything below; nothing of the library imports it.
"""
