"""identity_dp: Laplace noise on the identity vector (book, chapter 5). See README.md."""
