"""MfM: Multi-factor Modifier (Pan, Chen, Wu)."""
