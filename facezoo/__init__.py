"""facezoo: a model zoo of face anonymizers."""
