"""Images to model inputs, model outputs to results: numpy and Pillow only, with the numbers of transformers 4.57.6."""
