"""SDN and MfM keep what every method promises; with untrained networks, which is what the promises are about."""

from __future__ import annotations

import json

import pytest

from facezoo.registry import load_class
from tests.labelled import untrained_checkpoint
from tests.methods.test_interface import MethodTester


class TestPromises(MethodTester):
    @pytest.fixture(scope="class", params=["sdn", "mfm"])
    def checkpoint(self, request, tmp_path_factory):
        return request.param, untrained_checkpoint(tmp_path_factory.mktemp(request.param) / "model", request.param)

    @pytest.fixture
    def method(self, checkpoint):
        name, folder = checkpoint
        return load_class(name).from_checkpoint(folder, json.loads((folder / "manifest.json").read_text()))
