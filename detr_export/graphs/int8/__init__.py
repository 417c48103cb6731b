"""Static int8: layers of a float graph compute in int8, with scales from pictures that the caller gives."""
