"""The networks of iFADIT under one roof, without training and without keys.

How an identity is scaled, from recogniser to generator and back (D = its length):

* ``E_ID`` gives directions, vectors of length 1. Networks get them times ``sqrt(D)``: components of about unit size.
* Spherical flow: T maps directions to directions, one to one; M gets the whole of T's output. What is read off the
  anonymized picture is a direction again, C corrects it, and the inverse of T takes its direction. Nothing is lost but
  what the picture itself loses.
* Affine flow (paper): T's output has a length too, and M gets it as it is. The length cannot be read off a picture; C
  has to guess it, the inverse gives a vector of some length, and M gets the direction of that (an original is a
  direction).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from facezoo.concealment.code import add_code_networks
from facezoo.concealment.phase_code import CodeLayout
from facezoo.faces.mask import face_mask
from facezoo.methods.ifadit.config import IFaditConfig
from facezoo.methods.ifadit.keygen import KeyWhitening
from facezoo.methods.ifadit.networks import AttributeEncoder, IdentityCompensation, IdentityMapper, coarse_inside
from facezoo.nets.coupling_flow import CouplingFlow
from facezoo.nets.stylegan2.generator import Generator


class IFaditNetworks(nn.Module):
    """Frozen generator, attribute encoder, M, T (the secure identity flow), C, the whitening of keys; the code's four.

    The code's networks are there with ``code_channels`` only.
    """

    mask: Tensor
    generator_mask: Tensor
    code_encoder: nn.Module
    code_embedder: nn.Module
    code_extractor: nn.Module
    revealer: nn.Module
    layout: CodeLayout

    def __init__(self, config: IFaditConfig) -> None:
        super().__init__()
        c = config
        self.config = c
        self.generator = Generator(c.generator_config).requires_grad_(False).eval()
        layers = c.generator_config.num_ws
        counts = (c.coarse_layers, c.medium_layers, c.fine_layers)
        self.attribute_encoder = AttributeEncoder(
            c.generator_resolution, c.encoder_widths, c.encoder_blocks, counts, c.head_width, c.w_dim
        )
        self.mapper = IdentityMapper(
            c.identity_dim, c.w_dim, layers, c.mapper_hidden, c.mapper_by_layer, c.mapper_residual
        )
        self.flow = CouplingFlow(c.identity_dim, c.w_dim, c.flow_hidden, c.flow_blocks, c.flow_scale, c.flow_sphere)
        self.compensation: nn.Module = (
            IdentityCompensation(c.identity_dim, c.compensation_hidden) if c.compensate else nn.Identity()
        )
        self.key_whitening = KeyWhitening(c.w_dim)
        if c.code_channels:
            add_code_networks(
                self, c.code_channels, c.conceal_width, c.conceal_blocks, c.residual_limit, c.size, "ifadit/code"
            )
        self.scale = math.sqrt(c.identity_dim)
        small_mask = torch.from_numpy(face_mask(c.generator_resolution).copy())
        self.register_buffer("generator_mask", small_mask, persistent=False)
        self.register_buffer("mask", torch.from_numpy(face_mask(c.size).copy()), persistent=False)

    def networks(self) -> dict[str, nn.Module]:
        """The networks by the names of their files."""
        return {name: child for name, child in self.named_children() if not isinstance(child, nn.Identity)}

    # ------------------------------------------------------------------ pictures
    def shrink(self, faces: Tensor) -> Tensor:
        """Crops ``(B, 3, S, S)`` at the generator's size (mean of each square)."""
        factor = self.config.size // self.config.generator_resolution
        return faces if factor == 1 else functional.avg_pool2d(faces, factor)

    def enlarge(self, small: Tensor) -> Tensor:
        """The generator's pictures at the size of crops (bilinear)."""
        if small.shape[-1] == self.config.size:
            return small
        size = (self.config.size, self.config.size)
        return functional.interpolate(small, size=size, mode="bilinear", align_corners=False)

    def attributes(self, faces: Tensor) -> Tensor:
        """E_Attr of crops ``(B, 3, S, S)`` -> ``(B, num_ws, w_dim)``, differences from the mean latent."""
        seen = coarse_inside(self.shrink(faces), self.generator_mask, self.config.attribute_grid)
        attributes: Tensor = self.attribute_encoder(seen)
        return attributes

    def latents(self, identity: Tensor, attributes: Tensor) -> Tensor:
        """M: identity ``(B, D)`` as T gives it (or a direction) and attributes -> latents ``(B, num_ws, w_dim)``."""
        offsets: Tensor = self.mapper(identity * self.scale, attributes)
        return self.generator.w_mean + offsets.float()

    def draw(self, latents: Tensor) -> Tensor:
        """G: latents -> pictures ``(B, 3, R, R)``, about in [-1, 1]."""
        pictures: Tensor = self.generator.synthesis(latents, noise=self.config.generator_noise)
        return pictures.float()  # bfloat16 in mixed precision

    def paint(self, identity: Tensor, attributes: Tensor) -> Tensor:
        """G(M(z, a)) at the size of crops."""
        return self.enlarge(self.draw(self.latents(identity, attributes)))

    def blend(self, faces: Tensor, painted: Tensor, mask: Tensor | None = None) -> Tensor:
        """Background refinement, paper equation (11): painted inside the mask, the picture at hand outside."""
        return torch.lerp(faces, painted, self.mask if mask is None else mask)

    # ------------------------------------------------------------------ identities
    def key_vector(self, noise: Tensor) -> Tensor:
        """F and the whitening: noise ``(B, z_dim)`` -> key vectors ``(B, w_dim)``."""
        vectors: Tensor = self.key_whitening(self.generator.mapping(noise))
        return vectors

    def transform(self, identity: Tensor, key_vector: Tensor) -> Tensor:
        """T: directions ``(B, D)`` -> what M gets; see the module's text."""
        turned: Tensor = self.flow(identity * self.scale, key_vector)
        return turned / self.scale

    def restore(self, read: Tensor, key_vector: Tensor) -> Tensor:
        """The direction T^-1(C(read)): from the direction read off an anonymized picture to the original's."""
        return self.undo(self.compensate(read), key_vector)

    def compensate(self, read: Tensor) -> Tensor:
        """C: ``(B, D)`` read off a picture -> what T may have given."""
        corrected: Tensor = self.compensation(read * self.scale)
        return corrected / self.scale

    def undo(self, identity: Tensor, key_vector: Tensor) -> Tensor:
        """T^-1 -> directions ``(B, D)``."""
        return functional.normalize(self.flow.inverse(identity * self.scale, key_vector), dim=-1)
