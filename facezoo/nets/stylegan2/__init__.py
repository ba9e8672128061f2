"""StyleGAN2: generator, discriminator, losses, adaptive augmentation, and the published weights' layouts.

Karras, Laine, Aittala, Hellsten, Lehtinen, Aila, "Analyzing and improving the image quality of StyleGAN", CVPR 2020.
Written from the paper; any power-of-two size from 8 pixels on.
"""

from facezoo.nets.stylegan2.config import StyleGAN2Config
from facezoo.nets.stylegan2.discriminator import Discriminator
from facezoo.nets.stylegan2.generator import Generator, MappingNetwork, SynthesisNetwork

__all__ = ["Discriminator", "Generator", "MappingNetwork", "StyleGAN2Config", "SynthesisNetwork"]
