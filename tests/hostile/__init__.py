"""Inputs that somebody damaged, or made to harm."""
