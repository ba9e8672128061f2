"""Folders as people have them: nothing is left out in silence, formats and names stay, a second run goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facezoo.batch import Job, Settings, one_run
from facezoo.errors import OutputError
from facezoo.files import sha256_file
from facezoo.records import PictureRecord, read_record, read_sidecar, sidecar_path
from tests.cli.conftest import files_under, portrait

BLUR = ("--model", "gaussian_blur", "--verify", "off")
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(4000)


@pytest.fixture
def phone(tmp_path: Path) -> Path:
    """Two pictures with a face, and what lies beside them on a phone or a Mac."""
    folder = tmp_path / "phone"
    folder.mkdir()
    portrait().save(folder / "IMG_0001.JPG", "JPEG", quality=92)
    portrait("obama.jpg").save(folder / "chrome.jfif", "JPEG", quality=92)
    (folder / "._IMG_0001.JPG").write_bytes(b"\0\x05\x16\7" + bytes(60))
    (folder / "notes.txt").write_text("words")
    return folder


@pytest.mark.parametrize("quiet", [[], ["-q"]])
def test_what_is_not_done_is_named_counted_and_fails(cli, phone, tmp_path, quiet):
    out = tmp_path / "out"
    assert cli("anonymize", phone, "-o", out, *BLUR, "--no-record", *quiet).code == 0
    assert files_under(out) == ["IMG_0001.JPG", "chrome.jfif"]
    undone = {
        "IMG_2.HEIC": (HEIC, "damaged"),
        "clip.MOV": (b"\0\0\0\x14ftypqt  " + bytes(500), "video"),
        "scan.pdf": (b"%PDF-1.4", "PDF"),
        "new.jxl": (b"\xff\x0a" + bytes(300), "JPEG XL"),
        "blob": (bytes(range(256)), "unknown kind"),
    }
    if not has_heic():
        undone["IMG_2.HEIC"] = (HEIC, "facezoo[heic]")
    for name, (data, _) in undone.items():
        (phone / name).write_bytes(data)
    (phone / "broken.jpg").symlink_to("nowhere.jpg")
    out = tmp_path / "second"
    run = cli("anonymize", phone, "-o", out, *BLUR, "--no-record", *quiet)
    assert run.code == 2
    assert files_under(out) == ["IMG_0001.JPG", "chrome.jfif"]
    for name, (_, reason) in undone.items():
        lines = [line for line in run.err.splitlines() if f"failed: {phone / name}" in line]
        assert len(lines) == 1, run.err
        assert reason in lines[0]
    assert "broken.jpg" in run.err
    assert "6 of 8 pictures failed" in run.err
    assert ("2 of 8 pictures done" in run.out) == (not quiet)


def has_heic() -> bool:
    try:
        import pillow_heif  # noqa: F401
    except ImportError:
        return False
    return True


def test_a_folder_with_nothing_but_videos_says_so(cli, tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    (folder / "a.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(50))
    run = cli("anonymize", folder, "-o", tmp_path / "out", *BLUR)
    assert run.code == 2
    assert "is a video" in run.error_line()


def test_a_name_too_long_for_its_record_fails_that_picture_alone(cli, phone, tmp_path):
    name = "x" * 251 + ".jpg"
    portrait().save(phone / name)
    out = tmp_path / "out"
    run = cli("anonymize", phone, "-o", out, *BLUR)
    assert run.code == 7
    assert "too long" in run.err
    assert "1 of 3 pictures failed" in run.err
    assert len([path for path in files_under(out) if not path.endswith(".json")]) == 2
    assert cli("anonymize", phone, "-o", tmp_path / "second", *BLUR, "--no-record").code == 0


def test_linked_folders_are_done_and_circles_end(cli, phone, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    portrait("biden.jpg").save(other / "b.jpg")
    (phone / "loop").symlink_to(".")
    (phone / "far").symlink_to(other)
    out = tmp_path / "out"
    run = cli("anonymize", phone, "-o", out, *BLUR, "--no-record")
    assert run.code == 0, run.err
    assert files_under(out) == ["IMG_0001.JPG", "chrome.jfif", "far/b.jpg"]


def test_formats_stay_for_what_is_never_recovered(cli, tmp_path):
    folder = tmp_path / "kinds"
    folder.mkdir()
    kinds = {
        **{"a.JPG": "JPEG", "b.webp": "WEBP", "c.tif": "TIFF", "d.bmp": "BMP", "e.avif": "AVIF", "f.gif": "GIF"},
        **{"noext": "JPEG", "wrong.jpg": "PNG", "2023.05.01": "JPEG"},
    }
    for name, kind in kinds.items():
        portrait().resize((150, 168)).save(folder / name, kind)
    out = tmp_path / "out"
    run = cli("anonymize", folder, "-o", out, *BLUR, "--no-record")
    assert run.code == 0, run.err
    expected = {
        **{"a.JPG": "JPEG", "b.webp": "WEBP", "c.tif": "TIFF", "d.bmp": "BMP", "e.avif": "AVIF", "f.png": "PNG"},
        **{"noext.jpg": "JPEG", "wrong.png": "PNG", "2023.05.01.jpg": "JPEG"},
    }
    found = {}
    for name in files_under(out):
        with Image.open(out / name) as image:
            found[name] = image.format
    assert found == expected


def test_a_reversible_model_gets_png_and_one_line_where_same_is_asked_for(
    cli, face_file, tiny_model, key_file, tmp_path
):
    folder = tmp_path / "two"
    folder.mkdir()
    for name in ("a.jpg", "b.jpg"):
        portrait().save(folder / name, quality=95)
    model = ("--model", tiny_model, "--key-file", key_file, "--verify", "off")
    assert cli("anonymize", folder, "-o", tmp_path / "png", *model, "--no-record").code == 0
    assert files_under(tmp_path / "png") == ["a.png", "b.png"]
    run = cli("anonymize", folder, "-o", tmp_path / "same", *model, "--no-record", "--format", "same", "-q")
    assert run.code == 0
    assert files_under(tmp_path / "same") == ["a.jpg", "b.jpg"]
    assert [line for line in run.err.splitlines() if "recovery" in line] == [
        "facezoo: warning: 2 of 2 outputs are JPEG, WebP or AVIF, which loses part of what recovery needs: expect a "
        "weaker recovery than from --format png, or use --seal"
    ]


def test_the_tools_own_advice_does_not_break_the_second_run(cli, phone, empty_scene, tmp_path):
    """--allow-no-face decides about pictures without a face, so finished ones with a face stay finished."""
    (phone / "ramp.png").write_bytes(empty_scene.read_bytes())
    out = tmp_path / "out"
    first = cli("anonymize", phone, "-o", out, *BLUR)
    assert first.code == 3
    assert "--allow-no-face copy" in first.err
    second = cli("anonymize", phone, "-o", out, *BLUR, "--allow-no-face", "copy")
    assert second.code == 0, second.err
    assert "2 finished before" in second.out
    # The copy was made with this setting, and it alone depends on it.
    third = cli("anonymize", phone, "-o", out, *BLUR)
    assert third.code == 7
    assert "ramp.png exists already, made with --allow-no-face copy" in third.err
    assert "IMG_0001" not in third.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--option", "sigma=30"], "with another --option"),
        (["--metadata", "keep-safe"], "with --metadata drop"),
        (["--quality", "80"], "with --quality 95"),
        (["--verify", "on"], "with --verify off"),
        (["--detector", "centerface"], "with --detector yunet"),
        (["--model", "pixelation"], "with the model gaussian_blur"),
    ],
)
def test_the_message_names_the_setting_that_differs(cli, phone, tmp_path, words, says):
    (phone / "chrome.jfif").unlink()
    out = tmp_path / "out"
    assert cli("anonymize", phone, "-o", out, *BLUR).code == 0
    run = cli("anonymize", phone, "-o", out, *BLUR, *words)
    assert run.code == 7
    assert f"exists already, made {says}; use --overwrite" in run.err


def test_settings_count_only_for_what_they_change(cli, face_file, tmp_path):
    out = tmp_path / "out"
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps({"astronaut.png": [[80, 40, 220, 220]], "other.png": [[0, 0, 9, 9]]}))
    words = ("anonymize", face_file.parent, "-o", out, "--model", "gaussian_blur", "--boxes", boxes, "--verify", "off")
    assert cli(*words).code == 0
    # Quality changes no PNG; boxes of another picture do not change this one.
    boxes.write_text(json.dumps({"astronaut.png": [[80, 40, 220, 220]]}))
    assert "1 finished before" in cli(*words, "--quality", "70").out
    boxes.write_text(json.dumps({"astronaut.png": [[80, 40, 220, 230]]}))
    assert "with another --boxes" in cli(*words).err


def test_no_hash_of_an_original_stands_in_a_record(cli, face_file, key_file, tmp_path):
    digest = sha256_file(face_file)
    plain, sealed = tmp_path / "a.png", tmp_path / "b.png"
    assert cli("anonymize", face_file, "-o", plain, *BLUR).code == 0
    assert cli("anonymize", face_file, "-o", sealed, *BLUR, "--seal", "--key-file", key_file).code == 0
    for target in (plain, sealed):
        text = sidecar_path(target).read_text()
        assert digest not in text
        assert len(read_sidecar(target).options["run"]["input"]) == 32
    # Another user of the same pictures gets another name of the input.
    state = os.environ["XDG_STATE_HOME"]
    secret = Path(state) / "facezoo" / "inputs.secret"
    assert secret.stat().st_mode & 0o077 == 0


def test_records_of_before_are_still_understood(cli, phone, tmp_path):
    """A record with a bare hash of the input and one hash of all settings: its picture is finished."""
    (phone / "chrome.jfif").unlink()
    out = tmp_path / "out"
    assert cli("anonymize", phone, "-o", out, *BLUR).code == 0
    place = sidecar_path(out / "IMG_0001.JPG")
    record = read_record(place)
    old = Settings(task="anonymize", model="gaussian_blur", verify="off").fingerprint()
    run = {**record.options["run"], "input": sha256_file(phone / "IMG_0001.JPG"), "settings": old}
    fields = {name: getattr(record, name) for name in record.__dataclass_fields__}
    place.write_text(PictureRecord(**{**fields, "options": {**record.options, "run": run}}).to_json())
    again = cli("anonymize", phone, "-o", out, *BLUR)
    assert again.code == 0, again.err
    assert "1 finished before" in again.out
    portrait("biden.jpg").save(phone / "IMG_0001.JPG", "JPEG")
    assert "another input" in cli("anonymize", phone, "-o", out, *BLUR).err


def test_records_in_a_folder_of_their_own(cli, tiny_model, key_file, tmp_path):
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    portrait().save(folder / "deep" / "a.png")
    out, records, back = tmp_path / "out", tmp_path / "records", tmp_path / "back"
    words = ("--key-file", key_file, "--records", records)
    model = ("--model", tiny_model, "--verify", "off")
    run = cli("anonymize", folder, "-o", out, *model, *words)
    assert run.code == 0, run.err
    assert files_under(out) == ["deep/a.png"]
    assert files_under(records) == ["deep/a.png.facezoo.json"]
    assert "1 finished before" in cli("anonymize", folder, "-o", out, *model, *words).out
    recovered = cli("recover", out, "-o", back, *words, "--model", tiny_model)
    assert recovered.code == 0, recovered.err
    assert "code verified" in recovered.out
    assert files_under(back) == [".facezoo-recovered.jsonl", "deep/a.png"]
    single = tmp_path / "new" / "folder" / "one.png"
    assert cli("anonymize", folder / "deep" / "a.png", "-o", single, *model, *words).code == 0
    assert (records / "one.png.facezoo.json").is_file()
    refused = cli("anonymize", folder, "-o", out, *model, *words, "--no-record")
    assert refused.code == 2
    assert "--records" in refused.error_line()


def test_too_many_pixels_are_refused_with_what_to_do(cli, tmp_path):
    source = tmp_path / "big.png"
    Image.new("1", (2000, 1000)).save(source)
    run = cli("anonymize", source, "-o", tmp_path / "x.png", *BLUR, "--max-megapixels", "1")
    assert run.code == 2
    assert "--max-megapixels 2" in run.error_line()
    assert cli("anonymize", source, "-o", tmp_path / "x.png", *BLUR).code == 3


def test_a_place_is_kept_for_mapping_only_where_asked_for(cli, tmp_path):
    source = tmp_path / "pano.jpg"
    exif = Image.Exif()
    exif.get_ifd(0x8825)[1] = "N"
    exif.get_ifd(0x8825)[2] = (52.0, 31.0, 7.0)
    exif[0x010E] = "a private caption"
    packet = (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description GPano:ProjectionType="equirectangular" '
        b'GPano:FullPanoWidthPixels="4000" dc:creator="Somebody" GPano:PosePitchDegrees="&lt;script&gt;"/></x:xmpmeta>'
    )
    portrait().save(source, quality=95, exif=exif, xmp=packet, dpi=(300, 300))
    for policy, kept in (("drop", False), ("keep-safe", False), ("keep-place", True)):
        for ending in ("jpg", "png", "webp"):
            target = tmp_path / f"{policy}.{ending}"
            assert cli("anonymize", source, "-o", target, *BLUR, "--metadata", policy).code == 0
            with Image.open(target) as image:
                image.load()
                assert bool(dict(image.getexif().get_ifd(0x8825))) == kept
                assert 0x010E not in image.getexif()
                text = str(image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or "")
                assert ("equirectangular" in text) == kept
                assert "Somebody" not in text
                assert "PosePitch" not in text  # no number
                if ending != "webp":
                    assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)


@pytest.mark.parametrize("model", ["gaussian_blur", "black_box"])
def test_gray_stays_gray(cli, tmp_path, model):
    source = tmp_path / "gray.png"
    portrait().convert("L").save(source)
    target = tmp_path / "out.png"
    assert cli("anonymize", source, "-o", target, "--model", model).code == 0
    with Image.open(target) as image:
        assert image.mode == "L"


def test_gray_stays_gray_through_a_learned_model_and_back(cli, tiny_model, key_file, tmp_path):
    source = tmp_path / "gray.png"
    portrait().convert("L").save(source)
    anon, back = tmp_path / "anon.png", tmp_path / "back.png"
    words = ("--model", tiny_model, "--key-file", key_file)
    assert cli("anonymize", source, "-o", anon, *words).code == 0
    run = cli("recover", anon, "-o", back, *words, "--allow-unverified")
    assert run.code == 0, run.err
    for path in (anon, back):
        with Image.open(path) as image:
            assert image.mode == "L", path
    with Image.open(source) as first, Image.open(anon) as second:
        assert np.abs(np.asarray(first, int) - np.asarray(second)).max() > 5


def test_two_runs_into_one_folder(cli, phone, tmp_path):
    """The second is refused while the first is at work: each would take the other's records for left-overs."""
    out = tmp_path / "out"
    out.mkdir()
    with one_run(out):
        run = cli("anonymize", phone, "-o", out, *BLUR, "-q")
        assert run.code == 7
        assert "another run is writing" in run.error_line()
    assert files_under(out) == []
    words = [sys.executable, "-m", "facezoo", "anonymize", str(phone), "-o", str(out), *BLUR]
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    codes = [process.communicate()[1] and process.returncode for process in both]
    assert 0 in [process.returncode for process in both], codes
    assert {process.returncode for process in both} <= {0, 7}
    for name in ("IMG_0001.JPG", "chrome.jfif"):
        assert read_sidecar(out / name).belongs_to(out / name)
    assert not [name for name in files_under(out) if name.startswith(".")]


def test_one_run_is_let_go_also_after_an_error(tmp_path):
    with pytest.raises(ValueError, match="stop"), one_run(tmp_path):
        raise ValueError("stop")
    with one_run(tmp_path), pytest.raises(OutputError), one_run(tmp_path):
        pass
    assert files_under(tmp_path) == []


def test_a_job_without_settings_of_its_own_is_described(tmp_path):
    described = Settings(task="anonymize").described(Job(tmp_path / "a", tmp_path / "a.png", "a"), None)
    assert described["quality"] is None
    assert described["boxes"] is None
