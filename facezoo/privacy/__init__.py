"""Keyed codes and, where a method needs them, privacy mechanisms and their accounts."""
