"""Measures an SDN or MfM model as their papers' tables do, and prints the papers' figures beside ours.

    python scripts/attributed_tables.py sdn.faces64 --data packed/evaluation128.safetensors \
        --labelled packed/train128.safetensors --count 300 -o evaluated/sdn.faces64

Not the same data: the papers measure on FaceScrub, CASIA-WebFace and CelebA; here it is a packed set of people that no
training saw. The Frechet distance has the features that its row names and is not FID. Attributes are judged by a
classifier of their own (``facezoo.evaluate.attribute_judge``), trained on real faces only; it is trained on the first
call and kept beside the tables (``--judge`` uses one that exists). ``facezoo evaluate`` has the rates at a false accept
rate, with every file format and with wrong keys.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from tqdm import tqdm

import facezoo
from facezoo.data.attributes import ATTRIBUTES
from facezoo.data.packed import PackedFaces
from facezoo.errors import FacezooError, InputError
from facezoo.evaluate.attribute_judge import AttributeJudge, train_attribute_judge
from facezoo.evaluate.judges import to_pictures, to_tensor
from facezoo.files import atomic_write
from facezoo.frozen import load_lpips
from facezoo.keys import KdfParams, Key
from facezoo.methods.attributed.method import AttributedMethod
from facezoo.methods.base import FaceContext
from facezoo.metrics import bootstrap_mean, frechet_distance, psnr, ssim, wilson
from facezoo.nets.dosgan import multiply_adds
from facezoo.recognition import load_recogniser
from facezoo.recognition.dlib_resnet import DLIB_STRICT, DLIB_THRESHOLD

BATCH = 16
SECRETS = ("one_bit", "all_bits", "another_source")
Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

PAPER = {
    "sdn": {
        "anonymized: LPIPS": ".15",
        "anonymized: SSIM": ".96",
        "anonymized: Frechet distance": "28 (FID)",
        "recovered: SSIM": ".872",
        "recovered: PSNR, dB": "28.91",
        "recovered: LPIPS": ".034",
        "recovered: PieAPP": ".451",
        "multiply-adds": "13.09 G (EC and En)",
    },
    "mfm": {
        "anonymized: LPIPS": ".35",
        "anonymized: SSIM": ".95 (.83 in SDN's table)",
        "anonymized: Frechet distance": "28 (27 in SDN's table; FID)",
        "anonymized: SPR, dlib at .6": "1.000 (three recognisers)",
        "recovered: SSIM": ".823 (SDN's table 2)",
        "recovered: PSNR, dB": "27.52 (SDN's table 2)",
        "recovered: LPIPS": ".069 (SDN's table 2)",
        "recovered: PieAPP": ".581 (SDN's table 2)",
        "recovered: ID distance to the original, dlib": ".216, .195, .234 (table 3, three faces)",
        "recovered: judged the same": ".913 (insightface)",
        # The caption of table 4 says to the originals, the text reads it as between the anonymized faces.
        "anonymized: ID distance to the original, dlib": ".499 (table 4 by its caption)",
        "one bit apart: distance of the two faces, dlib": ".499 (table 4 by the text)",
        "one bit apart: pairs below .4": "2 of 24",
    },
}


def password(seed: int, index: int, bits: int) -> str:
    """A password of the papers' form, from the seed."""
    return "".join(map(str, np.random.default_rng((seed, index)).integers(0, 2, bits)))


def flipped(text: str, place: int) -> str:
    """The same with one bit changed."""
    return text[:place] + ("0" if text[place] == "1" else "1") + text[place + 1 :]


def key_of(bits: str) -> Key:
    """Its key, with a cheap scrypt: what guessing costs is not measured here."""
    return Key.from_bits(bits, kdf=KdfParams(n=2, r=8, p=1))


class Runs:
    """Calls the method over crops, a batch at a time, and gives what a file would hold."""

    def __init__(self, method: AttributedMethod, keys: Sequence[str]) -> None:
        self.method, self.keys = method, keys

    def __call__(
        self, task: str, pictures: Bytes, title: str, flip: int | None = None, **options: object
    ) -> tuple[Bytes, int]:
        """``(N, S, S, 3)`` -> the same, batch i under key i, and how many were verified.

        Args:
            task: "anonymize" or "recover".
            pictures: What goes in.
            title: For the progress bar.
            flip: Bit of the password to change.
            options: The method's options.
        """
        parts, verified = [], 0
        for number, start in enumerate(
            tqdm(range(0, len(pictures), BATCH), desc=title, unit="batch", dynamic_ncols=True)
        ):
            bits = self.keys[number % len(self.keys)]
            key = key_of(bits if flip is None else flipped(bits, (flip + number) % len(bits)))
            context = FaceContext(key=key, options=options)
            faces = to_tensor(pictures[start : start + BATCH])
            if task == "anonymize":
                result: Tensor = self.method.anonymize(faces, context)
            else:
                recovered = self.method.recover(faces, context)
                result, verified = recovered.faces, verified + sum(v is True for v in recovered.verified)
            parts.append(to_pictures(result))
        return np.concatenate(parts), verified


def embed(recogniser: nn.Module, pictures: Bytes) -> Floats:
    """Raw vectors (N, D) of crops."""
    with torch.inference_mode():
        rows = [recogniser(to_tensor(pictures[i : i + BATCH])) for i in range(0, len(pictures), BATCH)]
    return torch.cat(rows).double().numpy()


def nearness(originals: Bytes, results: Bytes, seed: int) -> dict[str, Any]:
    """MAE (of values in [0, 1]), PSNR, SSIM and, where its weights are found, LPIPS, with their intervals."""
    perceptual = load_lpips()
    rows: dict[str, list[Tensor]] = {"mae": [], "psnr": [], "ssim": [], "lpips": []}
    with torch.inference_mode():
        for i in range(0, len(originals), BATCH):
            a, b = to_tensor(originals[i : i + BATCH]), to_tensor(results[i : i + BATCH])
            rows["mae"].append(((a - b) / 2).abs().flatten(1).mean(1))
            rows["psnr"].append(psnr(a, b))
            rows["ssim"].append(ssim(a, b))
            if perceptual is not None:
                rows["lpips"].append(perceptual(a, b))
    return {
        name: bootstrap_mean(torch.cat(parts).double().numpy(), seed).to_dict() if parts else None
        for name, parts in rows.items()
    }


def distances(first: Floats, second: Floats, seed: int) -> dict[str, Any]:
    """ID distance (Euclidean, dlib's vectors) and SPR: the share of pairs at or above the threshold."""
    apart = np.linalg.norm(first - second, axis=1)
    return {
        "distance": bootstrap_mean(apart, seed).to_dict(),
        "spr_0.6": wilson(int((apart >= DLIB_THRESHOLD).sum()), len(apart)).to_dict(),
        "spr_0.5": wilson(int((apart >= DLIB_STRICT).sum()), len(apart)).to_dict(),
        "spr_0.4": wilson(int((apart >= 0.4).sum()), len(apart)).to_dict(),
    }


def requests(runs: Runs, originals: Bytes, judge: AttributeJudge, plain: Bytes) -> dict[str, Any]:
    """Every value of every attribute asked for alone; how often the judge sees it then, and when it is not asked for.

    Args:
        runs: The method.
        originals: Faces.
        judge: Who says what is seen.
        plain: The same faces anonymized with nothing asked for.
    """
    unasked = judge.guess(plain)
    rows: dict[str, Any] = {}
    for column, name in enumerate(judge.names):
        for index, value in enumerate(ATTRIBUTES[name].values):
            try:
                pictures, _ = runs("anonymize", originals, f"{name}={value}", attributes=f"{name}={value}")
            except InputError as error:  # a request that the method refuses (none of a single attribute today)
                rows[f"{name}={value}"] = {"refused": str(error)}
                continue
            met = int((judge.guess(pictures)[:, column] == index).sum())
            free = int((unasked[:, column] == index).sum())
            rows[f"{name}={value}"] = {
                "met": wilson(met, len(originals)).to_dict(),
                "seen_unasked": wilson(free, len(originals)).to_dict(),
            }
    return rows


def network_alone(method: AttributedMethod, originals: Bytes, keys: Sequence[str], seed: int) -> dict[str, Any]:
    """What password, attributes and source do to the networks, when neither the draw of a source nor the code helps.

    Args:
        method: The model.
        originals: Faces ``(N, S, S, 3)``.
        keys: A password for each batch.
        seed: Of sources, places of the changed bits and wrong attributes.

    Returns:
        dlib's distances between a face and the same face with something changed; where there is a code, of faces
        recovered with the right code to their originals; and how far the anonymizing network moves the first guess,
        mean absolute in levels of 255 (None: it starts from nothing).
    """
    c, networks = method.config, method.networks
    rng = torch.Generator().manual_seed(seed)
    made: dict[str, list[Bytes]] = {}
    moved: list[Tensor] = []
    for number, start in enumerate(range(0, len(originals), BATCH)):
        crops = to_tensor(originals[start : start + BATCH])
        count = len(crops)
        bits = torch.randint(2, (count, c.password_bits), generator=rng)
        near = bits.clone()
        near[torch.arange(count), torch.randint(c.password_bits, (count,), generator=rng)] ^= 1
        nothing = torch.full((count, len(c.attributes)), -1)
        wrong = torch.stack(
            [torch.randint(len(ATTRIBUTES[name].values), (count,), generator=rng) for name in c.attributes], 1
        )
        source, other = (networks.source_bank.draw(torch.rand(count, 3, generator=rng)) for _ in range(2))
        with torch.inference_mode():
            painted = {
                "plain": method.hide(crops, bits, nothing, source),
                "one_bit": method.hide(crops, near, nothing, source),
                "all_bits": method.hide(crops, 1 - bits, nothing, source),
                "another_source": method.hide(crops, bits, nothing, other),
            }
            if c.content_grid:
                guess = networks.guess(networks.shrink(crops), source, nothing)
                untouched = networks.paint_over(crops, guess, torch.zeros_like(guess))
                moved.append((painted["plain"] - untouched).abs().flatten(1).mean(1) * 127.5)
            if c.keyed_code:
                key = key_of(keys[number])
                saved = to_tensor(to_pictures(method.anonymize(crops, FaceContext(key=key))))
                extracted = networks.code_extractor(saved)
                phasors = torch.stack(
                    [networks.layout.decrypt(one, key, networks.layout.read_header(one, key)[0]) for one in extracted]
                )
                painted["recovered"] = method.reveal(saved, bits, nothing, source, phasors)
                painted["recovered_all_wrong"] = method.reveal(saved, 1 - bits, wrong, other, phasors)
        for name, pictures in painted.items():
            made.setdefault(name, []).append(to_pictures(pictures))
    dlib = load_recogniser("dlib")
    vectors = {name: embed(dlib, np.concatenate(parts)) for name, parts in made.items()}
    real = embed(dlib, originals)
    return {
        "n": len(originals),
        **{name: distances(vectors["plain"], v, seed) for name, v in vectors.items() if name in SECRETS},
        **{name: distances(real, v, seed) for name, v in vectors.items() if name.startswith("recovered")},
        "own_change": bootstrap_mean(torch.cat(moved).double().numpy(), seed).to_dict() if moved else None,
    }


def cost(method: AttributedMethod, faces: Tensor) -> dict[str, Any]:
    """Multiply-adds and parameters of both directions, seconds a face on this machine (one thread, batches of 16)."""
    networks, size = method.networks, method.config.size
    parameters = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.networks().items()}
    bits, nothing = "01" * (method.config.password_bits // 2), len(method.config.attributes)

    class Pass(nn.Module):
        def __init__(self, task: str) -> None:
            super().__init__()
            self.task, self.networks = task, networks

        def forward(self, picture: Tensor) -> Tensor:
            features = torch.zeros(1, method.config.feature_dim)
            password_bits = torch.zeros(1, method.config.password_bits, dtype=torch.long)
            request = torch.full((1, nothing), -1)
            if self.task == "hide":
                return method.hide(picture, password_bits, request, features)
            side = size // 4
            phasors = torch.zeros(1, 2 * method.config.code_channels, side, side) if method.config.keyed_code else None
            return method.reveal(picture, password_bits, request, features, phasors)

    counted = {task: multiply_adds(Pass(task), torch.zeros(1, 3, size, size)) for task in ("hide", "reveal")}
    context = FaceContext(key=key_of(bits + "0" * (method.config.password_bits - len(bits))))
    seconds = {}
    saved = method.anonymize(faces, context)  # warms up
    for task, call in (("anonymize", method.anonymize), ("recover", method.recover)):
        times = []
        for _ in range(3):
            started = time.perf_counter()
            call(faces if task == "anonymize" else saved, context)
            times.append(time.perf_counter() - started)
        seconds[task] = min(times) / len(faces)
    return {"multiply_adds": counted, "parameters": parameters, "seconds_a_face": seconds}


def measure(model: str, data: Path, judge: AttributeJudge, count: int, per_request: int, seed: int) -> dict[str, Any]:
    """All figures but the judge's own.

    Raises:
        InputError: the model is of another method, or the set's crops have another size.
    """
    torch.set_num_threads(1)
    anonymizer = facezoo.from_pretrained(model)
    method = anonymizer.method
    if not isinstance(method, AttributedMethod):
        raise InputError(f"{model} is neither sdn nor mfm; use facezoo evaluate")
    packed = PackedFaces(data)
    if packed.size != method.config.size:
        raise InputError(f"{data} has crops of {packed.size} pixels and the model takes {method.config.size}")
    chosen = np.sort(np.random.default_rng(seed).permutation(len(packed))[:count])
    originals: Bytes = packed.batch(chosen)
    runs = Runs(method, [password(seed, i, method.config.password_bits) for i in range(-(-count // BATCH))])

    hidden, _ = runs("anonymize", originals, "anonymize")
    near, _ = runs("anonymize", originals, "one bit apart", flip=0)
    recovered, verified = runs("recover", hidden, "recover")
    wrong, false_verified = runs("recover", hidden, "recover, one bit apart", flip=0)
    # A request is part of the secret: the picture asked for with one value, recovered with another.
    name = "smiling" if "smiling" in method.config.attributes else method.config.attributes[0]
    first, second = (f"{name}={value}" for value in ATTRIBUTES[name].values[:2])
    asked, _ = runs("anonymize", originals, first, attributes=first, register="none")
    right_attribute, _ = runs("recover", asked, f"recover with {first}", attributes=first, register="none")
    wrong_attribute, _ = runs("recover", asked, f"recover with {second}", attributes=second, register="none")

    dlib = load_recogniser("dlib")
    real = embed(dlib, originals)
    vectors = {
        title: embed(dlib, pictures)
        for title, pictures in tqdm(
            {
                "anonymized": hidden,
                "one_bit": near,
                "recovered": recovered,
                "wrong_bit": wrong,
                "right_attribute": right_attribute,
                "wrong_attribute": wrong_attribute,
            }.items(),
            desc="dlib",
            unit="set",
        )
    }
    return {
        "model": anonymizer.model,
        "method": method.name,
        "data": data.name,
        "faces": len(originals),
        "size": packed.size,
        "seed": seed,
        "password_bits": method.config.password_bits,
        "machine": f"{platform.processor() or platform.machine()}, one thread",
        # Rows are in the order of the set, people together: half a set away is somebody else.
        "strangers": distances(real, np.roll(real, len(real) // 2, 0), seed),
        "anonymized": {**nearness(originals, hidden, seed), **distances(vectors["anonymized"], real, seed)},
        "frechet": frechet_distance(real, vectors["anonymized"]),
        "recovered": {
            **nearness(originals, recovered, seed),
            **distances(vectors["recovered"], real, seed),
            "verified": wilson(verified, len(originals)).to_dict(),
        },
        "one_bit_apart": {
            "two_anonymized": distances(vectors["anonymized"], vectors["one_bit"], seed),
            "recovered": distances(vectors["wrong_bit"], real, seed),
            "verified": wilson(false_verified, len(originals)).to_dict(),
        },
        "attribute_as_secret": {
            "right": distances(vectors["right_attribute"], real, seed),
            "wrong": distances(vectors["wrong_attribute"], real, seed),
            "asked": first,
            "recovered_with": second,
        },
        "network_alone": network_alone(method, originals[:per_request], runs.keys, seed),
        "requests_n": min(per_request, len(originals)),
        "requests": requests(runs, originals[:per_request], judge, hidden[:per_request]),
        "cost": cost(method, to_tensor(originals[:BATCH])),
    }


def table(result: Mapping[str, Any]) -> str:
    """Markdown: the papers' figures beside ours, then the requests."""

    def of(entry: Mapping[str, Any] | None, digits: int = 3) -> str:
        if entry is None:
            return "no LPIPS weights here"
        return f"{entry['value']:.{digits}f} ({entry['low']:.{digits}f}-{entry['high']:.{digits}f})"

    hidden, back, one = result["anonymized"], result["recovered"], result["one_bit_apart"]
    cost = result["cost"]
    below = {k: round((1 - one["two_anonymized"]["spr_0.4"][k]) * 100, 1) for k in ("value", "high", "low")}
    ours = {
        "anonymized: LPIPS": of(hidden["lpips"]),
        "anonymized: SSIM": of(hidden["ssim"]),
        "anonymized: PSNR, dB": of(hidden["psnr"], 1),
        "anonymized: Frechet distance": f"{result['frechet']:.4f} (dlib's vectors; not FID)",
        "anonymized: ID distance to the original, dlib": of(hidden["distance"]),
        "anonymized: SPR, dlib at .6": of(hidden["spr_0.6"]),
        "strangers: ID distance, dlib": of(result["strangers"]["distance"]),
        "strangers: SPR, dlib at .6": of(result["strangers"]["spr_0.6"]),
        "recovered: SSIM": of(back["ssim"]),
        "recovered: PSNR, dB": of(back["psnr"], 1),
        "recovered: LPIPS": of(back["lpips"]),
        "recovered: PieAPP": "not measured",
        "recovered: ID distance to the original, dlib": of(back["distance"]),
        "recovered: judged the same": f"{1 - back['spr_0.6']['value']:.3f} (dlib at .6)",
        "one bit apart: distance of the two faces, dlib": of(one["two_anonymized"]["distance"]),
        "one bit apart: pairs below .4": f"{below['value']} % ({below['high']}-{below['low']})",
        "one bit apart: SPR of the recovered face, dlib at .6": of(one["recovered"]["spr_0.6"]),
        "one bit apart: taken for verified": of(one["verified"]),
        "wrong attribute: SPR of the recovered face, dlib at .6": of(result["attribute_as_secret"]["wrong"]["spr_0.6"]),
        "right attribute: judged the same": f"{1 - result['attribute_as_secret']['right']['spr_0.6']['value']:.3f}",
        "multiply-adds": f"{cost['multiply_adds']['hide'] / 1e9:.2f} G hide, "
        f"{cost['multiply_adds']['reveal'] / 1e9:.2f} G reveal",
        "parameters": f"{sum(cost['parameters'].values()) / 1e6:.2f} M",
        "seconds a face": f"{cost['seconds_a_face']['anonymize']:.3f} anonymize, "
        f"{cost['seconds_a_face']['recover']:.3f} recover ({result['machine']})",
    }
    alone = result["network_alone"]
    ours |= {
        "same source, one bit apart: distance of the two faces, dlib": of(alone["one_bit"]["distance"]),
        "same source, all bits flipped": of(alone["all_bits"]["distance"]),
        "another source, same bits": of(alone["another_source"]["distance"]),
    }
    if "recovered" in alone:
        ours |= {
            "right code; bits, source and no attribute as they come: ID distance": of(alone["recovered"]["distance"]),
            "right code; all bits, attributes and source wrong": of(alone["recovered_all_wrong"]["distance"]),
        }
    if alone["own_change"] is not None:
        ours["what the network changes of its first guess, levels of 255"] = of(alone["own_change"], 1)
    paper = PAPER[result["method"]]
    lines = [
        f"# {result['model']} beside the paper",
        "",
        f"**Not the same data.** Ours: {result['faces']} faces of {result['data']}, {result['size']} pixels, passwords "
        f"of {result['password_bits']} bits, 8-bit pictures, 95 % intervals, seed {result['seed']}. Paper: FaceScrub, "
        f"CASIA-WebFace and CelebA. The rows from *same source* on ({alone['n']} faces) are of the networks alone, "
        "without the draw of a source that a password makes and without the code's choice between right and wrong.",
        "",
        "| figure | paper | here |",
        "|---|---|---|",
        *(f"| {name} | {paper.get(name, '-')} | {mine} |" for name, mine in ours.items()),
        "",
        f"Requests, each asked for alone on {result['requests_n']} faces, judged by a classifier that took no part in "
        "the training (its own accuracy on people it never saw in the last column):",
        "",
        "| asked for | seen when asked | seen unasked | judge's accuracy (chance) |",
        "|---|---|---|---|",
    ]
    for request, row in result["requests"].items():
        own = result["judge"][request.partition("=")[0]]
        if "refused" in row:
            lines.append(f"| {request} | refused: {row['refused']} | | |")
        else:
            known = f"{own['value']:.3f} ({own['chance']:.3f})"
            lines.append(f"| {request} | {of(row['met'])} | {of(row['seen_unasked'])} | {known} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="an SDN or MfM model's name or checkpoint folder")
    parser.add_argument("--data", type=Path, required=True, help="packed set of people that no training saw")
    parser.add_argument("--labelled", type=Path, help="labelled packed set for the attribute judge's training")
    parser.add_argument("--judge", type=Path, help="attribute judge of an earlier call (and its .json) instead")
    parser.add_argument("--count", type=int, default=300, help="faces (default: 300)")
    parser.add_argument("--per-request", type=int, default=96, help="faces for each request (default: 96)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of faces and passwords")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of tables.json and tables.md")
    given = parser.parse_args()
    try:
        given.output.mkdir(parents=True, exist_ok=True)
        path = given.judge or given.output / "attribute_judge.safetensors"
        if not path.exists():
            if given.labelled is None:
                raise InputError("name a labelled packed set with --labelled, or a judge with --judge")
            names = facezoo.from_pretrained(given.model).method.config.attributes  # type: ignore[attr-defined]
            judge, accuracy = train_attribute_judge(PackedFaces(given.labelled), names, seed=given.seed)
            judge.save(path)
            text = json.dumps(accuracy.to_dict(), indent=1) + "\n"
            atomic_write(path.with_suffix(".json"), text.encode(), overwrite=True)
        judge = AttributeJudge.load(path)
        result = measure(given.model, given.data, judge, given.count, given.per_request, given.seed)
        result["judge"] = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
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
