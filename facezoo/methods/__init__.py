"""The methods, one room each. `facezoo.registry` lists them; nothing is imported here, so that listing stays fast."""
