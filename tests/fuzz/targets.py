"""All targets, by name."""

from __future__ import annotations

from tests.fuzz import annotations, checkpoints, documents, graphs, pictures
from tests.fuzz.target import Target

TARGETS: dict[str, Target] = {
    target.name: target for module in (documents, checkpoints, annotations, pictures, graphs) for target in module.TARGETS
}
