"""Files, settings and situations that an adversary would choose."""
