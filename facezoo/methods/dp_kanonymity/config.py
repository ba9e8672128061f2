"""Configuration of dp_kanonymity: attributes, networks, losses and phases, each number with its source."""

from __future__ import annotations

import dataclasses
import re
from typing import Literal

_RULE = re.compile(r"(?P<name>\w+)=(?P<field>[a-z]\w*)(\[(?P<column>\d+)\])?:(?P<below><)?(?P<value>-?\d+)")


@dataclasses.dataclass(frozen=True)
class AttributeRule:
    """How a binary attribute is read from a packed set's labels; a negative label is an unknown one.

    Attributes:
        name: Of the attribute.
        field: Array of the packed set.
        column: Of that array, where it has several; None: it has one.
        below: The attribute holds where the label is below ``value``; else where it equals it.
        value: See ``below``.
    """

    name: str
    field: str
    column: int | None
    below: bool
    value: int

    @classmethod
    def parse(cls, text: str) -> AttributeRule:
        """Reads ``male=sex:1``, ``young=age:<35`` or ``Bald=attributes[4]:1``.

        Raises:
            ValueError: another form.
        """
        match = _RULE.fullmatch(text)
        if match is None:
            raise ValueError(f"attribute {text!r} must read NAME=FIELD:VALUE, NAME=FIELD:<VALUE or NAME=FIELD[I]:VALUE")
        column = None if match["column"] is None else int(match["column"])
        return cls(match["name"], match["field"], column, match["below"] is not None, int(match["value"]))


@dataclasses.dataclass(frozen=True)
class DPKAnonymityConfig:
    """Plain numbers and texts only, so that checkpoints load with ``weights_only=True``.

    Attributes:
        size: Side of the aligned crop in pixels (book, 4.5.1: 128).
        attributes: How each attribute is read from the labels, see ``AttributeRule`` (book: 13 of CelebA's).
        conflicts: Names of attributes of which exactly one holds, separated by spaces, a text for each group (book:
            hair colours; mustache or no beard).
        classifier_backbone: Name of a timm model that the classifier stands on (book: "resnet50"); "" for residual
            blocks of the three numbers below, with group normalisation.
        classifier_weights: State dict of that timm model with which training starts (book: ImageNet's), a path; "" for
            none. A finished checkpoint holds what became of it.
        classifier_widths: Widths of the classifier's stages (book: ResNet-50: 256, 512, 1024, 2048).
        classifier_blocks: Residual blocks of each stage (ResNet-50: 3, 4, 6, 3).
        classifier_bottleneck: Blocks of 1x1, 3x3, 1x1 as in ResNet-50; else of two 3x3.
        feature_dim: Length of phi(x), the layer before the logits; neighbours are near in it.
        generator_widths: Encoder widths, finest first; each level halves the side (STGAN: 64 to 1024).
        stu_levels: Levels with a selective transfer unit on the skip connection, finest first (STGAN: 4).
        discriminator_widths: Widths of the discriminator's strided convolutions (STGAN: 64 to 1024).
        discriminator_hidden: Width of the fully connected layer of each head (STGAN: 1024).
        classifier_learning_rate: 4e-4 (book, 4.5.2).
        classifier_decay: Exponent of the polynomial decay (book: "polynomial decay with a gamma of .1").
        classifier_weight_decay: 5e-4 (book).
        learning_rate: Of editor and discriminator; Adam 2e-4 (STGAN).
        beta1: .5 (STGAN).
        beta2: .999 (STGAN).
        lambda_gradient: Weight of the gradient penalty; 10 (WGAN-GP).
        lambda_d_attribute: lambda_1 of (4.12): 1.
        lambda_g_attribute: lambda_2 of (4.13): 10.
        lambda_rec: lambda_3 of (4.13): 100.
        discriminator_batches: Discriminator batches for each generator batch: 5.
        classify_batches: Length of the first phase.
        edit_batches: Length of the second phase.
    """

    size: int = 128
    attributes: tuple[str, ...] = ("male=sex:1", "young=age:<35", "smiling=expression:4")
    conflicts: tuple[str, ...] = ()
    classifier_backbone: str = ""
    classifier_weights: str = ""
    classifier_widths: tuple[int, ...] = (256, 512, 1024, 2048)
    classifier_blocks: tuple[int, ...] = (3, 4, 6, 3)
    classifier_bottleneck: bool = True
    feature_dim: int = 512
    generator_widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    stu_levels: int = 4
    discriminator_widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    discriminator_hidden: int = 1024
    classifier_learning_rate: float = 4e-4
    classifier_decay: float = 0.1
    classifier_weight_decay: float = 5e-4
    learning_rate: float = 2e-4
    beta1: float = 0.5
    beta2: float = 0.999
    lambda_gradient: float = 10.0
    lambda_d_attribute: float = 1.0
    lambda_g_attribute: float = 10.0
    lambda_rec: float = 100.0
    discriminator_batches: Literal[1, 2, 3, 4, 5] = 5
    classify_batches: int = 20_000
    edit_batches: int = 200_000

    def __post_init__(self) -> None:
        """Checks what would otherwise fail late.

        Raises:
            ValueError: Rules, groups or sizes that do not fit together.
        """
        names = [rule.name for rule in self.rules]
        if len(names) < 1 or len(set(names)) != len(names):
            raise ValueError(f"attributes must have different names, not {', '.join(names) or 'none'}")
        in_groups = [name for group in self.groups for name in group]
        if unknown := sorted(set(in_groups) - set(names)):
            raise ValueError(f"conflicts name unknown attributes: {', '.join(unknown)}")
        if len(set(in_groups)) != len(in_groups) or any(len(group) < 2 for group in self.groups):
            raise ValueError("a conflict group has two attributes or more, and an attribute is in one group at most")
        if self.classifier_weights and not self.classifier_backbone:
            raise ValueError("classifier_weights are those of a timm model: name it as classifier_backbone")
        if len(self.classifier_widths) != len(self.classifier_blocks):
            raise ValueError("classifier_widths and classifier_blocks must be equally long")
        for levels in (len(self.generator_widths), len(self.discriminator_widths)):
            if self.size % 2**levels:
                raise ValueError(f"size {self.size} cannot be halved {levels} times")
        if not 0 <= self.stu_levels < len(self.generator_widths):
            raise ValueError("stu_levels must be fewer than the generator's levels: the deepest has no skip connection")

    @property
    def rules(self) -> tuple[AttributeRule, ...]:
        """The attributes, parsed."""
        return tuple(AttributeRule.parse(text) for text in self.attributes)

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """The conflict groups' names."""
        return tuple(tuple(text.split()) for text in self.conflicts)

    @property
    def group_indices(self) -> tuple[tuple[int, ...], ...]:
        """The conflict groups as positions among the attributes."""
        names = [rule.name for rule in self.rules]
        return tuple(tuple(names.index(name) for name in group) for group in self.groups)
