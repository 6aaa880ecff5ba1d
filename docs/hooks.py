"""What building the pages needs: the notebook as a page, and functions that have the name of their file."""

import base64
import json
from pathlib import Path

from griffe import Alias, Extension
from mkdocs.structure.files import File

NOTEBOOK = Path(__file__).parent / "tour.ipynb"


def on_files(files, config):
    """Adds the notebook as a page, cells as text and code with what they printed and drew below, and its pictures."""
    parts, pictures = [], {}
    for i, cell in enumerate(json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]):
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for j, output in enumerate(cell.get("outputs", [])):
            data = output.get("data", {})
            text = "".join(output.get("text", data.get("text/plain", [])))
            if "image/png" in data:
                name = f"figures/tour-{i}-{j}.png"
                pictures[name] = base64.b64decode("".join(data["image/png"]))
                parts.append(f"![What the code above draws]({name})")
            elif text:
                parts.append(f"```text\n{text.rstrip()}\n```")
    page = File.generated(config, "tour.md", content="\n\n".join(parts) + "\n")
    for file in [page, *(File.generated(config, name, content=data) for name, data in pictures.items())]:
        files.append(file)
    return files


class Functions(Extension):
    """`eqsparse.report` is the function, not the file `_report/report.py` that it is defined in."""

    def on_package(self, *, pkg, **kwargs):
        for name, member in list(pkg.members.items()):
            if not member.is_alias:
                continue
            target = pkg.modules_collection[member.target_path]
            if target.is_module and name in target.members:
                pkg.set_member(name, Alias(name, f"{member.target_path}.{name}", parent=pkg))
