"""Tables and cards that stages exchange, with every column's meaning, and how they are read and written."""
