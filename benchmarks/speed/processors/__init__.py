"""What happens before and after the network: this project's processors beside transformers' slow and fast classes.

Why: with a fast network, resizing the image and merging the masks are a large part of the time. For one image, transformers
makes a stack of full-size masks (100 x 800 x 1066 float32 = 340 MB) and walks over it several times for every query.

What: first the pre-processing of some images, one at a time and as a batch. Then detections, instance maps and a panoptic
map, from the outputs of an imaginary model: 100 queries with masks of 200x267, scaled to 800x1066, of which 100 or 20 are
kept. Each side gets the same images or numbers in its own kind of array. Results are compared before anything is timed.
Pixels must be equal bit for bit, or as the tests of this project allow. A larger difference is an error, because then the
times mean nothing.

How: rounds are interleaved (ours, theirs, ours, theirs, ...), so that a machine that slows down or is shared slows both. A
ratio is taken within each round; its median over the rounds and their spread are reported. torch may use its threads, and
our side those of `processing.threads`.
"""
