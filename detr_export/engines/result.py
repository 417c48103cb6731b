"""What a build of an engine gives."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detr_export.engines.kernels import KernelReport
from detr_export.engines.place import targets_text
from detr_export.runtimes.backends.tensorrt.api import TITLES
from detr_export.runtimes.backends.tensorrt.sidecar import EngineSidecar
from detr_export.verification.comparison import Parity
from detr_export.verification.end_to_end import EndToEndParity


@dataclass(frozen=True)
class EngineResult:
    """What was made."""

    path: Path
    size_bytes: int
    sidecar: EngineSidecar
    parity: Parity | EndToEndParity | None  # None when verification was switched off, or another process had built it
    built_here: bool  # False: another process was building the same engine, and this one waited for it
    report: KernelReport | None = None  # on the kernels of the first profile; None if the builder logged none
    mask_head: EngineResult | None = None  # the engine that draws the masks, if that is another one

    def summary(self) -> str:
        """For people."""
        about = self.sidecar
        built_for = about.gpu or targets_text(about.targets)
        library = f"{TITLES[about.library]} {about.library_version}"
        lines = [f"{self.path}  {self.size_bytes / 1e6:.1f} MB, {about.precision}, {library}, {built_for}"]
        if about.fallback is not None:
            lines.append(f"fell back to {about.fallback}")
        if self.report is not None:
            lines.append(self.report.summary())
        if self.mask_head is not None:
            lines.append(f"{self.mask_head.path}  {self.mask_head.size_bytes / 1e6:.1f} MB, the mask head")
            if self.mask_head.report is not None:
                lines.append(self.mask_head.report.summary())
        if self.parity is not None:
            lines.append(self.parity.summary())
        elif not self.built_here:
            lines.append("built by another process in the meantime")
        elif about.gpu is None:
            lines.append(f"compiled, never run: nobody knows its numbers; on its GPU run detr-export verify {self.path}")
        else:
            lines.append("not verified: --no-verify")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "path": str(self.path),
            "size_bytes": self.size_bytes,
            "built_here": self.built_here,
            "sidecar": json.loads(self.sidecar.to_json()),
            **({} if self.mask_head is None else {"mask_head": self.mask_head.to_dict()}),
        }
