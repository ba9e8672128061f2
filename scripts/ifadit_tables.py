"""Measures an iFADIT model as the paper's Tables 1 to 5 do, and prints both side by side.

    python scripts/ifadit_tables.py runs/ifadit.faces64/checkpoint --data packed/evaluation128.safetensors \
        --count 300 -o evaluated/ifadit.faces64

Not the same data: the paper measures on CelebA-HQ and LFW at 256 pixels by ArcFace and AdaFace; here it is a packed set
of people that no training saw, at the model's size, by the recognisers found here that took no part in the training.
All rows are the paper's method alone, without the code that a model's pictures may carry; what that code recovers
stands below the table. The Frechet distance has the features that its row names and is not FID. What can be compared is
the order of magnitude, and the rows of one table with each other. ``facezoo evaluate`` has the rates with thresholds
and intervals.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

import facezoo
from facezoo.data.packed import PackedFaces
from facezoo.errors import FacezooError, InputError
from facezoo.evaluate.judges import to_pictures, to_tensor
from facezoo.evaluate.subjects import EvaluationKeys
from facezoo.evaluate.utility import utility_row
from facezoo.files import atomic_write
from facezoo.frozen import load_lpips
from facezoo.keys import Key
from facezoo.methods.base import FaceContext
from facezoo.methods.ifadit.keygen import measure_keys
from facezoo.methods.ifadit.method import IFadit
from facezoo.metrics import frechet_distance, psnr, ssim
from facezoo.metrics.diversity import key_diversity
from facezoo.recognition import list_recognisers, load_recogniser
from facezoo.recognition.window import TemplateWindow

BATCH = 16
Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

PAPER = {
    "anonymity: cosine to the original, LFW (ArcFace / AdaFace)": ".020 / .015",
    "anonymity: cosine to the original, CelebA-HQ (ArcFace / AdaFace)": ".061 / .048",
    "utility: face detected (MTCNN / dlib)": "1.000 / .995",
    "utility: box L1, pixels of 256 (MTCNN / dlib)": ".998 / .850",
    "utility: landmark L1, pixels of 256 (MTCNN / dlib)": "1.219 / .986",
    "utility: FID": "14.76",
    "recovery: MSE": "3.2e-4",
    "recovery: PSNR": "35.20",
    "recovery: SSIM": ".945",
    "recovery: LPIPS": ".041",
    "recovery: cosine (ArcFace / AdaFace)": ".852 / .786",
    "diversity: mean cosine to the original, anonymized": ".062",
    "diversity: KFFA, anonymized": "74.72",
    "diversity: mean cosine to the original, wrongly recovered": ".172",
    "diversity: KFFA, wrongly recovered": "70.80",
}


def call(
    method: IFadit,
    task: str,
    pictures: Bytes,
    key: Key | None,
    title: str,
    refine_steps: int,
    *,
    conceal: bool = False,
) -> Bytes:
    """Runs the method over crops (N, S, S, 3), a batch at a time, and gives what a file would hold."""
    parts = []
    for start in tqdm(range(0, len(pictures), BATCH), desc=title, unit="batch", dynamic_ncols=True):
        faces = to_tensor(pictures[start : start + BATCH])
        context = FaceContext(key=key, options={"refine_steps": refine_steps, "conceal": conceal})
        result: Tensor
        if task == "anonymize":
            result = method.anonymize(faces, context)
        elif task == "recover":
            result = method.recover(faces, context).faces
        else:
            result = method.reconstruct(faces, context)
        parts.append(to_pictures(result))
    return np.concatenate(parts)


class Judge:
    """A recogniser whose vectors are compared by their cosine.

    Those of a Euclidean one (dlib) all point the same way: different people have a cosine of .86. The mean of the
    originals is taken off first, so that strangers are at right angles as with the others.
    """

    def __init__(self, name: str, originals: Bytes) -> None:
        self.recogniser = load_recogniser(name)
        self.title = name if self.recogniser.metric == "cosine" else f"{name}, centred"
        self.mean: Floats | None = None
        vectors = self._raw(originals)
        if self.recogniser.metric != "cosine":
            self.mean = vectors.mean(0)
        self.originals = self.embed(originals)

    def _raw(self, pictures: Bytes) -> Floats:
        with torch.inference_mode():
            rows = [self.recogniser(to_tensor(pictures[i : i + BATCH])) for i in range(0, len(pictures), BATCH)]
        return torch.cat(rows).double().numpy()

    def embed(self, pictures: Bytes) -> Floats:
        """Unit identity vectors (N, D) of crops."""
        vectors = self._raw(pictures) - (0 if self.mean is None else self.mean)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def nearness(originals: Bytes, results: Bytes) -> dict[str, float | None]:
    """Mean squared error (of values in [0, 1]), PSNR, SSIM and, where its weights are found, LPIPS."""
    perceptual = load_lpips()
    rows: dict[str, list[Tensor]] = {"mse": [], "psnr": [], "ssim": [], "lpips": []}
    with torch.inference_mode():
        for i in range(0, len(originals), BATCH):
            a, b = to_tensor(originals[i : i + BATCH]), to_tensor(results[i : i + BATCH])
            rows["mse"].append(((a - b) / 2).square().flatten(1).mean(1))
            rows["psnr"].append(psnr(a, b))
            rows["ssim"].append(ssim(a, b))
            if perceptual is not None:
                rows["lpips"].append(perceptual(a, b))
    return {name: float(torch.cat(parts).mean()) if parts else None for name, parts in rows.items()}


def measure(model: str, data: Path, count: int, key_count: int, seed: int, refine_steps: int) -> dict[str, Any]:
    """All figures.

    Raises:
        InputError: the model is of another method, or fewer than two keys.
    """
    anonymizer = facezoo.from_pretrained(model)
    method = anonymizer.method
    if not isinstance(method, IFadit):
        raise InputError(f"{model} is no iFADIT model; use facezoo evaluate")
    if key_count < 2:
        raise InputError("diversity needs at least two keys: --keys 4")
    packed = PackedFaces(data)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(packed))[:count])
    originals: Bytes = packed.batch(chosen)
    size = method.networks.config.size
    if size != packed.size:
        window = TemplateWindow(size, 128.0 / size, 0.0, 0.0)
        originals = np.concatenate([to_pictures(window(to_tensor(p[None]))) for p in originals])
    keys = EvaluationKeys(seed, key_count)

    hidden = [
        call(method, "anonymize", originals, keys.key("right", n), f"key {n}", refine_steps) for n in range(key_count)
    ]
    recovered = call(method, "recover", hidden[0], keys.key("right", 0), "recover", refine_steps)
    wrong = [
        call(method, "recover", hidden[0], keys.key("wrong", n), f"wrong key {n}", refine_steps)
        for n in range(key_count)
    ]
    drawn = call(method, "reconstruct", originals, None, "phase I", refine_steps)
    coded: dict[str, Bytes] = {}
    if method.networks.config.code_channels:
        right, other = keys.key("right", 0), keys.key("wrong", 0)
        covers = call(method, "anonymize", originals, right, "with the code", refine_steps, conceal=True)
        coded = {
            "anonymized": covers,
            "recovered": call(method, "recover", covers, right, "recover by the code", refine_steps, conceal=True),
            "wrong": call(method, "recover", covers, other, "wrong key", refine_steps, conceal=True),
        }

    judges = {}
    for name in list_recognisers():
        judge = Judge(name, originals)
        real = judge.originals
        mine, wrongly = (np.stack([judge.embed(p) for p in pictures], 1) for pictures in (hidden, wrong))

        def cosine(vectors: Floats, real: Floats = real) -> float:
            return float((vectors * real).sum(1).mean())

        judges[judge.title] = {
            "took_part_in_training": name in method.identity_encoders,
            "cosine_strangers": cosine(np.roll(real, 1, 0)),
            "cosine_anonymized": cosine(mine[:, 0]),
            "cosine_recovered": cosine(judge.embed(recovered)),
            "cosine_wrongly_recovered": cosine(wrongly[:, 0]),
            "cosine_phase_one": cosine(judge.embed(drawn)),
            "cosine_with_code": {part: cosine(judge.embed(pictures)) for part, pictures in coded.items()},
            "diversity": vars(key_diversity(mine, real)),
            "diversity_wrong": vars(key_diversity(wrongly, real)),
            "frechet": frechet_distance(real, mine[:, 0]) if len(real) > 1 else None,
        }
    networks = method.networks
    return {
        "model": anonymizer.model,
        "data": data.name,
        "faces": len(originals),
        "size": size,
        "keys": key_count,
        "seed": seed,
        "refine_steps": refine_steps,
        "judges": judges,
        "utility": [utility_row(originals, hidden[0], name, seed) for name in ("yunet", "centerface")],
        "recovery": nearness(originals, recovered),
        "phase_one": nearness(originals, drawn),
        "recovery_by_code": nearness(originals, coded["recovered"]) if coded else None,
        "key_vectors": vars(measure_keys(networks.key_whitening, networks.generator.mapping, networks.config.z_dim)),
    }


def table(result: dict[str, Any]) -> str:
    """Markdown: the paper's figures beside ours."""
    judges = {n: j for n, j in result["judges"].items() if not j["took_part_in_training"]} or result["judges"]
    names = " / ".join(judges)

    def of(read: Any, digits: int = 3) -> str:
        return " / ".join(f"{read(judge):.{digits}f}" for judge in judges.values())

    def utility(name: str, digits: int = 3) -> str:
        return " / ".join(f"{row[name]['value']:.{digits}f}" for row in result["utility"])

    def number(part: str, name: str) -> str:
        value = result[part][name]
        return "no LPIPS weights here" if value is None else f"{value:.4g}"

    anonymized = f"{of(lambda j: j['cosine_anonymized'])} ({names})"
    ours = [
        anonymized,
        anonymized,
        f"{utility('detected')} (YuNet / CenterFace)",
        f"{utility('box_l1')} (YuNet / CenterFace, pixels of {result['size']})",
        f"{utility('points_l1')} (five points, YuNet / CenterFace, pixels of {result['size']})",
        f"Frechet distance {of(lambda j: j['frechet'])} (features: {names}; not FID)",
        number("recovery", "mse"),
        number("recovery", "psnr"),
        number("recovery", "ssim"),
        number("recovery", "lpips"),
        f"{of(lambda j: j['cosine_recovered'])} ({names})",
        f"{of(lambda j: j['diversity']['cosine'])} ({names})",
        f"{of(lambda j: j['diversity']['kffa'], 2)} ({names})",
        f"{of(lambda j: j['diversity_wrong']['cosine'])} ({names})",
        f"{of(lambda j: j['diversity_wrong']['kffa'], 2)} ({names})",
    ]
    lines = [
        f"# {result['model']} beside the paper",
        "",
        f"**Not the same data.** Ours: {result['faces']} faces of {result['data']}, {result['size']} pixels, "
        f"{result['keys']} keys, {result['refine_steps']} refinement steps, recovered from 8-bit pictures; judges that "
        "took no part in the training. Paper: CelebA-HQ (or LFW, where it says so) at 256 pixels.",
        "",
        "| figure | paper | here |",
        "|---|---|---|",
        *(f"| {name} | {paper} | {mine} |" for (name, paper), mine in zip(PAPER.items(), ours, strict=True)),
        "",
        "Phase I alone (nothing changed, the generator's whole picture): "
        f"PSNR {number('phase_one', 'psnr')}, SSIM {number('phase_one', 'ssim')}, "
        f"LPIPS {number('phase_one', 'lpips')}, cosine {of(lambda j: j['cosine_phase_one'])} ({names}). "
        f"Neighbours in the set, mostly strangers: cosine {of(lambda j: j['cosine_strangers'])}. "
        f"Wrong key: cosine to the original {of(lambda j: j['cosine_wrongly_recovered'])}. "
        f"Random keys: mean pairwise cosine {result['key_vectors']['cosine']:.3f} after the mapping network, "
        f"{result['key_vectors']['whitened']:.3f} as the flow gets them (authors' code: .964).",
    ]
    if result["recovery_by_code"] is not None:

        def coded(part: str) -> str:
            return of(lambda judge: judge["cosine_with_code"][part])

        lines += [
            "",
            "With the code in the picture (ours): cosine to the original "
            f"{coded('anonymized')} anonymized, {coded('recovered')} recovered, {coded('wrong')} with a wrong key "
            f"({names}); recovered at PSNR {number('recovery_by_code', 'psnr')}, "
            f"SSIM {number('recovery_by_code', 'ssim')}, LPIPS {number('recovery_by_code', 'lpips')}.",
        ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="an iFADIT model's name or checkpoint folder")
    parser.add_argument("--data", type=Path, required=True, help="packed set of people that no training saw")
    parser.add_argument("--count", type=int, default=300, help="faces (default: 300)")
    parser.add_argument("--keys", type=int, default=4, help="keys for the diversity (default: 4)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of faces and keys")
    parser.add_argument("--refine-steps", type=int, default=0, help="the method's option (default: 0)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of tables.json and tables.md")
    given = parser.parse_args()
    try:
        result = measure(given.model, given.data, given.count, given.keys, given.seed, given.refine_steps)
        text = table(result)
        for name, content in (("tables.json", json.dumps(result, indent=1) + "\n"), ("tables.md", text)):
            atomic_write(given.output / name, content.encode(), overwrite=True, make_parents=True)
    except FacezooError as error:
        print(f"facezoo: error: {error}", file=sys.stderr)
        return error.exit_code
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
