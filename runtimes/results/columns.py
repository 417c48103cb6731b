"""The names of what a row says of one object."""

OBJECT_COLUMNS = ("label", "class", "score", "x_min", "y_min", "x_max", "y_max")
COLUMNS = ("file", *OBJECT_COLUMNS)  # where the objects of several pictures are in one table
