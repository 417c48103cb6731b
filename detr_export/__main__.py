"""`python -m detr_export` is the command `detr-export`."""

from detr_export.cli import main

if __name__ == "__main__":
    main()
