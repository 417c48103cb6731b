"""What a prediction is, and how it is drawn."""
