"""One reader for each benchmark: from a folder to its units, and to what is wrong with it.

A folder is taken itself or as its parent's, as `TREE` says. Missing parts of the tree are a
FileNotFoundError, a list or file that is broken as a whole is a ValueError, and what is wrong with
one unit a BadUnit when it is loaded.
"""
