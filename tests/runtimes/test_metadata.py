"""The document inside an artefact, there and back, and in states of damage."""

from __future__ import annotations

import json

import pytest

from detr_export.runtimes.errors import ArtifactError
from detr_export.runtimes.metadata import FORMAT_VERSION, Metadata

METADATA = Metadata(
    task="detection",
    id2label={0: "N/A", 7: "Käse"},
    processor={"size": {"shortest_edge": 800}, "image_mean": [0.5]},
    pixel_mask=True,
    opset=18,
    ranges={"batch": (1, None), "height": (32, 1600)},
    source={"name": "a", "sha256": "b"},
    tools={"torch": "2"},
    parity={"passed": True},
)
DOCUMENT = json.loads(METADATA.to_json())


def test_round_trip() -> None:
    again = Metadata.from_json(METADATA.to_json())
    assert again == METADATA
    assert list(again.id2label) == [0, 7]
    assert again.ranges["height"] == (32, 1600)


def test_unknown_fields_are_passed_over() -> None:
    assert Metadata.from_json(json.dumps({**DOCUMENT, "new": 1})) == METADATA


def test_optional_fields_may_be_absent() -> None:
    required = ("task", "id2label", "processor", "pixel_mask", "format_version")
    read = Metadata.from_json(json.dumps({name: DOCUMENT[name] for name in required}))
    assert (read.precision, read.ranges, read.parity) == ("fp32", {}, None)


def test_a_newer_format_is_refused() -> None:
    with pytest.raises(
        ArtifactError, match=f"has format {FORMAT_VERSION + 1}; this detr-export reads {FORMAT_VERSION}, update"
    ):
        Metadata.from_json(json.dumps({**DOCUMENT, "format_version": FORMAT_VERSION + 1}))


@pytest.mark.parametrize("name", ["task", "id2label", "processor", "pixel_mask", "format_version"])
def test_refuses_a_missing_field(name: str) -> None:
    with pytest.raises(ArtifactError, match=f"metadata is damaged: .*{name}.*; export it again"):
        Metadata.from_json(json.dumps({key: value for key, value in DOCUMENT.items() if key != name}))


@pytest.mark.parametrize(
    "changes",
    [
        {"format_version": "1"},
        {"id2label": ["a"]},
        {"id2label": {"a": "b"}},
        {"ranges": {"batch": 1}},
        {"ranges": {"batch": ["a", None]}},
        {"ranges": [1]},
        {"processor": "a"},
        {"source": [1]},
        {"tools": 1},
        {"parity": "good"},
    ],
    ids=str,
)
def test_refuses_fields_of_another_type(changes: dict) -> None:
    with pytest.raises(ArtifactError, match="metadata is damaged"):
        Metadata.from_json(json.dumps({**DOCUMENT, **changes}))


@pytest.mark.parametrize("text", ["", "{", "[]", "1", "null", '"a"'])
def test_refuses_other_documents(text: str) -> None:
    with pytest.raises(ArtifactError, match=r"metadata is (damaged: it is .*; expected an object|not JSON)"):
        Metadata.from_json(text)
