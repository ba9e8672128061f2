"""The vocabulary, requests and conflicts, a user's table of labels, what is measured in pixels, the register."""

from __future__ import annotations

import json

import numpy as np
import pytest

from facezoo.concealment.register import open_text, seal_text
from facezoo.data import labelling
from facezoo.data.attributes import (
    ATTRIBUTES,
    format_request,
    parse_request,
    request_indices,
    resolve,
)
from facezoo.data.labels import labels_of, read_label_csv
from facezoo.data.packed import PackedFaces, write_packed
from facezoo.errors import InputError, RecordError, UnknownNameError
from facezoo.keys import Key
from facezoo.methods.mfm.options import MfMOptions
from facezoo.methods.sdn.options import SDNOptions
from tests.labelled import NAMES, labelled_set

KEY, OTHER = Key.from_bytes(bytes(range(32))), Key.from_bytes(bytes(range(1, 33)))


class TestRequests:
    def test_both_kinds_exist(self):
        kinds = {a.kind for a in ATTRIBUTES.values()}
        assert kinds == {"identity", "style"}
        assert {n for n, a in ATTRIBUTES.items() if a.kind == "identity"} == {"sex", "age", "smiling"}

    def test_order_and_spaces_do_not_matter(self):
        one, two = parse_request("hair=blond, smiling=YES"), parse_request(["smiling=yes", "hair=blond"])
        assert one == two == {"smiling": "yes", "hair": "blond"}
        assert format_request(one) == "smiling=yes,hair=blond"
        assert parse_request(None) == parse_request("") == {}

    def test_unknown_attribute_lists_and_suggests(self):
        with pytest.raises(UnknownNameError, match=r"'smilling'; did you mean smiling\? Choices: sex, age, smiling"):
            parse_request("smilling=yes")

    def test_unknown_value_lists_and_suggests(self):
        with pytest.raises(
            UnknownNameError, match=r"value of hair 'blonde'; did you mean blond\? Choices: black, brown"
        ):
            parse_request("hair=blonde")

    @pytest.mark.parametrize("text", ["smiling", "=yes", "smiling="])
    def test_malformed(self, text):
        with pytest.raises(InputError, match="NAME=VALUE"):
            parse_request(text)

    def test_two_values_of_one_attribute(self):
        with pytest.raises(InputError, match="contradictory attributes: smiling=yes and smiling=no"):
            parse_request(["smiling=yes", "smiling=no"])

    def test_indices_in_a_checkpoint(self):
        assert request_indices({"hair": "blond"}, NAMES) == [-1, -1, 2]
        with pytest.raises(UnknownNameError, match=r"attribute of this checkpoint called 'age'.*sex, smiling, hair"):
            request_indices({"age": "old"}, NAMES)

    def test_sdn_refuses_and_mfm_resolves_contradictions(self):
        with pytest.raises(InputError, match=r"mustache=yes and sex=female .* leave one out"):
            SDNOptions(attributes="sex=female,mustache=yes")
        assert MfMOptions(attributes="sex=female,mustache=yes").request == {"sex": "female", "mustache": "yes"}
        left, dropped = resolve({"sex": "female", "mustache": "yes"}, {})
        assert left == {"sex": "female"}
        assert dropped == ["mustache=yes was dropped: a mustache on a female face (sex=female is asked for)"]

    def test_conflict_with_the_face(self):
        assert resolve({"mustache": "yes"}, {"sex": "female"})[1] == [
            "mustache=yes was dropped: a mustache on a female face (the face looks female)"
        ]
        # What is asked for counts for more than what is seen.
        assert resolve({"mustache": "yes", "sex": "male"}, {"sex": "female"}) == (
            {"mustache": "yes", "sex": "male"},
            [],
        )

    def test_options_keep_attributes_out_of_records(self):
        options = SDNOptions(attributes="hair=blond,smiling=yes", edit="smiling=+2", source_picture="me.png")
        assert options.attributes == "smiling=yes,hair=blond"
        assert options.edits() == {"smiling": 2.0}
        assert options.to_record() == {"register": "sealed", "vary": True}

    @pytest.mark.parametrize("edit", ["smiling=3", "smiling", "smiling=a", "smiling=1,smiling=2", "nose=1"])
    def test_bad_edits(self, edit):
        with pytest.raises(InputError, match="edit"):
            SDNOptions(edit=edit)


class TestTable:
    files = ("a.png", "b.png", "c.png")

    def table(self, tmp_path, text):
        path = tmp_path / "labels.csv"
        path.write_text(text)
        return path

    def test_reads(self, tmp_path):
        path = self.table(tmp_path, "file,hair,smiling\nc.png,gray,yes\na.png,,no\nb.png,Black,\n")
        labels = read_label_csv(path, self.files)
        assert labels["hair"].tolist() == [-1, 0, 3]
        assert labels["smiling"].tolist() == [0, -1, 1]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("file,hair\na.png,black\n", r"no row for 2 of 3 pictures \(b.png, c.png\)"),
            ("file,hair\na.png,green\n", "line 2: hair cannot be 'green'; write one of black, brown, blond, gray"),
            ("file,hair\nz.png,black\n", "line 2: 'z.png' is no picture of the set"),
            ("file,hair\na.png,black\na.png,black\n", "line 3: 'a.png' has two rows"),
            ("name,hair\na.png,black\n", "needs a column 'file'"),
            ("file\na.png\n", "no column of an attribute"),
            ("file,hairs\na.png,black\n", "'hairs'; did you mean hair"),
        ],
    )
    def test_refuses(self, tmp_path, text, message):
        with pytest.raises((InputError, UnknownNameError), match=message):
            read_label_csv(self.table(tmp_path, text), self.files)

    def test_no_such_file(self, tmp_path):
        with pytest.raises(InputError, match="cannot read the labels"):
            read_label_csv(tmp_path / "none.csv", self.files)

    def test_into_the_set_with_its_source(self, tmp_path):
        path = labelled_set(tmp_path / "set.safetensors")
        files = PackedFaces(path).files
        table = self.table(tmp_path, "file,skin\n" + "".join(f"{f},dark\n" for f in files[:-1]) + f"{files[-1]},\n")
        sources = labelling.label_set(path, table=table)
        after = PackedFaces(path)
        assert labels_of(after, ["skin"])[:, 0].tolist() == [2] * (len(files) - 1) + [-1]
        assert json.loads(after.metadata["attributes"])["skin"]["source"] == "the table labels.csv"
        assert sources["skin"].known == pytest.approx((len(files) - 1) / len(files))
        with pytest.raises(InputError, match="say where the labels come from"):
            labelling.label_set(path)


class TestLabels:
    def set_with(self, tmp_path, **arrays):
        count = len(next(iter(arrays.values())))
        path = tmp_path / "own.safetensors"
        names = [f"{i}" for i in range(count)]
        images = iter(np.zeros((count, 16, 16, 3), np.uint8))
        words = json.dumps(["happiness", "neutral", "surprise"])
        write_packed(
            path, images, size=16, identities=names, files=names, arrays=arrays, metadata={"expressions": words}
        )
        return PackedFaces(path)

    def test_from_the_set_s_own_arrays(self, tmp_path):
        faces = self.set_with(
            tmp_path,
            sex=np.array([0, 1, -1], np.int16),
            age=np.array([15, 16, 55], np.int16),
            expression=np.array([0, 1, 2], np.int16),
        )
        assert labels_of(faces, ["sex", "age", "smiling"]).tolist() == [[0, 0, 1], [1, 1, 0], [-1, 3, -1]]

    def test_missing_labels_say_what_to_do(self, tmp_path):
        faces = self.set_with(tmp_path, sex=np.array([0, 1], np.int16))
        with pytest.raises(InputError, match="no labels of hair; make them with: facezoo label"):
            labels_of(faces, ["sex", "hair"])

    def test_foreign_values_are_refused(self, tmp_path):
        faces = self.set_with(tmp_path, attribute_hair=np.array([0, 9], np.int16))
        with pytest.raises(InputError, match="no value of hair"):
            labels_of(faces, ["hair"])


class TestMeasured:
    def face(self, hair, skin):
        image = np.full((128, 128, 3), skin, np.uint8)
        image[:20] = hair
        return image

    @pytest.mark.parametrize(
        ("hair", "expected"),
        [((25, 20, 18), 0), ((95, 65, 45), 1), ((205, 170, 110), 2), ((165, 165, 165), 3), ((222, 180, 155), -1)],
        ids=["black", "brown", "blond", "gray", "bald"],
    )
    def test_hair(self, hair, expected):
        assert labelling.measure_hair(self.face(hair, (225, 180, 155))) == expected

    def test_hair_against_the_light(self):
        """The same head in half of the light is still blond."""
        image = self.face((205, 170, 110), (225, 180, 155))
        assert labelling.measure_hair((image * 0.75).astype(np.uint8)) == 2

    def test_background_is_no_hair(self):
        assert labelling.measure_hair(self.face((40, 60, 200), (225, 180, 155))) == -1

    @pytest.mark.parametrize(("skin", "expected"), [((245, 215, 200), 0), ((180, 135, 105), 1), ((90, 60, 45), 2)])
    def test_skin(self, skin, expected):
        assert labelling.measure_skin(self.face((0, 0, 0), skin)) == expected

    def test_probe_fills_the_surest(self):
        rng = np.random.default_rng(0)
        truth = rng.integers(0, 2, 400).astype(np.int16)
        features = rng.standard_normal((400, 6)).astype(np.float32)
        features[:, 2] += 6 * truth
        labels = truth.copy()
        labels[::4] = -1
        filled, agreement, compared = labelling.probe(features, labels, np.arange(400), 2)
        assert np.array_equal(filled[labels >= 0], truth[labels >= 0]), "known labels stay"
        new = (labels < 0) & (filled >= 0)
        assert new.sum() == pytest.approx(85, abs=3)
        assert (filled[new] == truth[new]).all()
        assert agreement == 1.0
        assert 40 < compared < 70


class TestRegister:
    def test_round_trip(self):
        sealed = seal_text(KEY, "sdn/register", "smiling=yes,hair=blond")
        assert open_text(KEY, "sdn/register", sealed) == "smiling=yes,hair=blond"
        assert len(sealed) == len(seal_text(KEY, "sdn/register", "sex=male")), "the length tells nothing"
        assert sealed == seal_text(KEY, "sdn/register", "smiling=yes,hair=blond")

    def test_wrong_key_or_purpose_or_damage(self):
        sealed = seal_text(KEY, "sdn/register", "sex=male")
        middle = "A" if sealed[40] != "A" else "B"
        for key, purpose, text in (
            (OTHER, "sdn/register", sealed),
            (KEY, "mfm/register", sealed),
            (KEY, "sdn/register", sealed[:40] + middle + sealed[41:]),
            (KEY, "sdn/register", sealed[:-4]),
            (KEY, "sdn/register", "no base64!"),
        ):
            with pytest.raises(RecordError, match="--attribute"):
                open_text(key, purpose, text)

    def test_too_long(self):
        with pytest.raises(ValueError, match="255"):
            seal_text(KEY, "p", "x" * 256)
