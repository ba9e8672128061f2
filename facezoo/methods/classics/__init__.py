"""The obfuscations everybody knows: blur, pixelation, black box, pixel noise, eye bar. README.md: what each is worth.

Nothing is imported here, so that `config` (options, no torch) can be read alone.
"""
