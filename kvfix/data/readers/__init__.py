"""One reader for each benchmark: from a folder to its units, and to what is wrong with it.

A function that is given a folder takes it or its parent, as `TREE` says. It raises a
FileNotFoundError where parts of the tree are missing, and a ValueError where a list or a file is
broken as a whole; what is wrong with one unit is a BadUnit when that unit is loaded.
"""
