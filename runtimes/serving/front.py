"""The page that a server shows in a browser if it has no other: the model, links, and a form that works without scripts."""

from __future__ import annotations

from html import escape

from detr_export.runtimes.serving.bodies import FIELD
from detr_export.runtimes.serving.identity import Identity

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{model}</title>
<style>
body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 40rem; margin: 3rem auto; padding: 0 1rem; }}
button {{ font: inherit; margin: 1rem 0.5rem 0 0; padding: 0.3rem 0.8rem; }}
</style>
</head>
<body>
<h1>{model}</h1>
<p>detr-export {version} runs this model on {device}.</p>
<form action="predict" method="post" enctype="multipart/form-data">
<p><label>A picture: <input type="file" name="{field}" accept="image/*" required></label></p>
<p>{buttons}</p>
</form>
<p><a href="health">health</a> · <a href="metrics">metrics</a> · <a href="openapi.json">openapi.json</a></p>
</body>
</html>
"""
_BUTTON = '<button formaction="predict?task={task}&amp;format={format}">{text}</button>'


def front_page(identity: Identity) -> str:
    """The page as HTML. Its links are relative, so it also works behind a proxy that adds a prefix."""
    buttons = [
        _BUTTON.format(task=escape(task), format=form, text=escape(f"{task}, {text}"))
        for task in identity.tasks
        for form, text in (("image", "drawn"), ("json", "JSON"))
    ]
    return _PAGE.format(
        model=escape(identity.model),
        version=escape(identity.version),
        device=escape(identity.device),
        field=FIELD,
        buttons="\n".join(buttons),
    )
