"""identity_rotation: personalized and invertible face de-identification (book, chapter 6). See README.md."""
