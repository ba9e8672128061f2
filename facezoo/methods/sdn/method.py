"""SDN at use: anonymize and recover aligned faces with a password and attributes.

Paper: Pan, Chen, Wu, "Secure Dual Network for Reversible Facial Image Anonymization Through the Latent Space
Manipulation", Electronics 2024, 13, 4398. Deviations: see README.md in this folder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor

from facezoo.methods.attributed.config import AttributedConfig
from facezoo.methods.attributed.method import AttributedMethod
from facezoo.methods.attributed.model import AttributedNetworks
from facezoo.methods.options import Options
from facezoo.methods.sdn.config import SDNConfig
from facezoo.methods.sdn.networks import SDNNetworks
from facezoo.methods.sdn.options import SDNOptions


class SDN(AttributedMethod):
    """The trained method."""

    name: ClassVar[str] = "sdn"
    options_class: ClassVar[type[Options]] = SDNOptions
    config_class: ClassVar[type[AttributedConfig]] = SDNConfig
    networks_class: ClassVar[Callable[..., AttributedNetworks]] = SDNNetworks
    networks: SDNNetworks

    def hide(
        self, faces: Tensor, bits: Tensor, attributes: Tensor, features: Tensor, degrees: Tensor | None = None
    ) -> Tensor:
        """``En(I, P, F)``; see ``AttributedMethod.hide``."""
        return self.networks.en(faces, bits, attributes, features, degrees)[0]

    def bottleneck(self, faces: Tensor, bits: Tensor, attributes: Tensor, features: Tensor) -> Tensor:
        """See ``AttributedMethod.bottleneck``."""
        return self.networks.en(faces, bits, attributes, features)[1]

    def reveal(
        self, saved: Tensor, bits: Tensor, attributes: Tensor, features: Tensor, phasors: Tensor | None
    ) -> Tensor:
        """``De(Q, P, F)``; see ``AttributedMethod.reveal``."""
        return self.networks.de(saved, bits, attributes, features, phasors)[0]
