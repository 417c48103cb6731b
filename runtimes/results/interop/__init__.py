"""Results as other tools have them: objects of other libraries, and texts of other formats. They are made of arrays."""
