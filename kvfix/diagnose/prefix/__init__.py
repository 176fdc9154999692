"""Does a text before the image change what the image values hold?"""
