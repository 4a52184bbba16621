"""The recipes that come with irpipe: TOML files."""
