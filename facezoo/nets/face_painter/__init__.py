"""A painter of faces that works on a mesh: shape and texture apart, one linear guess, one small refiner.

The face is unwrapped by its 468 mesh points into a texture where eyes, nose and mouth of everybody lie in the same
place; a linear model paints there, the result is wrapped onto the mesh again, and a small network refines it in the
picture. Expression and pose survive because they are geometry, and a regression that knows where the mouth is need not
blur it (active appearance models: Cootes, Edwards, Taylor, "Active Appearance Models", ECCV 1998).
"""
