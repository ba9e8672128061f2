"""DP-Pix, DP-Blur and DP-SVD: obfuscations with a proof, about pixels and not about people. See README.md."""
