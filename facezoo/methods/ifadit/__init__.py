"""iFADIT: invertible anonymization by a disentangled identity transform (Yuan et al.). See README.md."""
