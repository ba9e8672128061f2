"""The networks of dp_kanonymity that ship, under one roof."""

from __future__ import annotations

from torch import nn

from facezoo.methods.dp_kanonymity.config import DPKAnonymityConfig
from facezoo.methods.dp_kanonymity.networks import AttributeClassifier, AttributeEditor, TimmClassifier


class DPKAnonymityNetworks(nn.Module):
    """Attribute classifier and editor.

    Raises:
        CheckpointError: The configuration names a backbone of timm that cannot be made.
    """

    def __init__(self, config: DPKAnonymityConfig) -> None:
        super().__init__()
        c = config
        self.config = c
        count = len(c.rules)
        self.classifier: nn.Module
        if c.classifier_backbone:
            self.classifier = TimmClassifier(c.classifier_backbone, c.size, c.feature_dim, count)
        else:
            self.classifier = AttributeClassifier(
                c.classifier_widths, c.classifier_blocks, c.feature_dim, count, bottleneck=c.classifier_bottleneck
            )
        self.editor = AttributeEditor(c.generator_widths, count, c.stu_levels)

    def networks(self) -> dict[str, nn.Module]:
        """The networks by the names of their files."""
        return dict(self.named_children())
