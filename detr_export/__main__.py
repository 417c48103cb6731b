"""`python -m detr_export` is the command `detr-export`."""

from detr_export.entry import export

if __name__ == "__main__":
    export()
