"""Networks and samplers: thin wrappers of well-kept libraries, shared by the stages."""
