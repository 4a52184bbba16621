"""A recipe's artifacts as people see them: one self-contained page, or lines and pictures in the terminal."""
