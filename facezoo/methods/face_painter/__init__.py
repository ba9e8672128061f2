"""face_painter: faces of anybody in the place of a face, on a mesh; what other methods paint with. See README.md."""
