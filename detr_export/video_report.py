"""What `detr-export predict` prints of videos: a bar while it runs, and a line for each video, or JSON for each frame."""

from __future__ import annotations

from contextlib import closing

import typer

from detr_export.runtimes.video.run import VideoRun
from detr_export.terminal import TerminalProgress, print_json_line, print_note


class VideoReport:
    """Reports the frames of videos as they come.

    Args:
        as_json: whether to print one line of JSON for each frame, and no text.
    """

    def __init__(self, as_json: bool) -> None:
        self.failed = False  # whether something was wrong with a video
        self._as_json = as_json

    def follow(self, run: VideoRun) -> None:
        """Runs one video to its end, and reports it. Its error goes to stderr, and with JSON to stdout, too."""
        try:
            with TerminalProgress(run.source.title, unit=" frames") as progress, closing(run.predictions()) as predictions:
                for prediction in predictions:
                    if self._as_json:
                        print_json_line(run.line(prediction))
                    progress.step(run.frames, run.expected)
                if run.error is not None:
                    progress.error(run.error)
        except BaseException:
            if not self._as_json and run.frames:
                typer.echo(run.summary())
            raise
        if run.error is not None:
            self.failed = True
            if self._as_json:
                print_json_line(run.error_line())
        if not self._as_json and (run.frames or run.error is None):
            typer.echo(run.summary())
        for note in run.notes():
            print_note(note)
