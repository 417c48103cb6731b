"""Cases of an adversary: bad inputs and situations, by group."""
