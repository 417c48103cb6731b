"""Prediction on many machines with Ray Data: a list of pictures in, a Parquet data set out.

::

    listing    which pictures there are            sources/*.parquet
    manifest   what is asked for                   run.json
    reading    task: read, decode, resize          ─┐
    model      actor: run, find                     ├ Ray Data streams from one to the next (job)
    parts      task: write rows                    ─┘ predictions/*.parquet
    coco       the same rows as COCO's results     predictions.coco.json, images.coco.json
"""
