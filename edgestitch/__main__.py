"""`python -m edgestitch`."""

from .cli import main

if __name__ == "__main__":
    main()
