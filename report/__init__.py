"""Reports of a recipe's artifacts: one self-contained page, or text and pictures in the terminal."""
