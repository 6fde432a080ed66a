"""``python -m posttrain``: the command line where its script is not on the path."""

from posttrain.cli import main

if __name__ == "__main__":
    main()
