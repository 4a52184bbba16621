"""What travels between stages: one file per thing, with every column's meaning."""
