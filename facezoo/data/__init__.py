"""Pictures for training and evaluation: packed sets, folders, published layouts, and preparing one's own pictures.

Importing this package imports nothing else; take what you need from its modules.
"""
