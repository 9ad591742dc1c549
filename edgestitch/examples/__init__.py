"""Programs to start from, each a page long: `python -m edgestitch.examples.<name> --help`."""
