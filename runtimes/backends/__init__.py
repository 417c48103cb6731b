"""One file or folder for each runtime; each imports its framework at the top, so only `opening` chooses what is imported."""
