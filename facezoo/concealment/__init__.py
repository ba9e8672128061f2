"""The code that lets the holder of a key recover a face from the saved picture: layout, encryption, placement."""
