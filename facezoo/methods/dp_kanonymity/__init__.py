"""dp_kanonymity: attributes of the k nearest neighbours, chosen privately, edited into the face (book, chapter 4)."""
