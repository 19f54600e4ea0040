"""From flags to objects: the only place below command lines that knows `Config`.

Imports everything below.
"""
