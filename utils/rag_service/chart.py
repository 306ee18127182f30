"""The Helm chart's objects, without a cluster: Helm's own engine renders them here.

Nothing is installed and no cluster is asked; `lookup` in a template finds nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nim_cookbook.errors import ConfigurationError, DataError

INSTALL = '`pip install "nim-rag-cookbook[kubernetes]"`'
#: Name and namespace of the release, where nothing else is said.
RELEASE, NAMESPACE = "rag", "default"

Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Manifest:
    """An object of the chart.

    Attributes:
        text: The object as YAML, with the template's comments.
        data: The same, parsed.
    """

    text: str
    data: dict[str, Any]

    @property
    def kind(self) -> str:
        """What it is, such as `Deployment`."""
        return str(self.data["kind"])

    @property
    def name(self) -> str:
        """Its name in the cluster."""
        return str(self.data["metadata"]["name"])

    def part(self, *path: str | int) -> str:
        """Return the text of a part, with its comments, and without the indentation that it has.

        Args:
            *path: Keys and positions that lead there, such as `"spec", "triggers", 0`.

        Raises:
            DataError: There is no such part.
        """
        if not path:
            return self.text
        node = yaml.compose(self.text)
        key: yaml.Node | None = None
        for step in path:
            key, node = _child(node, step)
            if node is None:
                where = ".".join(map(str, path))
                raise DataError(f"{self.kind} {self.name} has no {where}.")
        assert node is not None
        first = (key or node).start_mark.line
        # A block ends where what follows begins, anything else on its own last line.
        block = (isinstance(node, yaml.CollectionNode) and not node.flow_style) or (
            isinstance(node, yaml.ScalarNode) and node.style in ("|", ">")
        )
        last = node.end_mark.line + (0 if block else 1)
        lines = self.text.splitlines()[first:last]
        depth = len(lines[0]) - len(lines[0].lstrip())
        while lines and (not lines[-1].strip() or lines[-1].lstrip().startswith("#")):
            lines.pop()  # a comment at the end belongs to what follows
        return "\n".join(line[depth:] if not line[:depth].strip() else line for line in lines)


class Manifests(tuple[Manifest, ...]):
    """All objects of a release."""

    __slots__ = ()

    def one(self, kind: str, name: str = "") -> Manifest:
        """Return the object of a kind whose name ends so.

        Args:
            kind: Such as `Deployment`.
            name: End of the name, after a hyphen; may be left out if there is one of the kind only.

        Raises:
            DataError: There is none, or more than one.
        """
        ends = re.compile(rf"(^|-){re.escape(name)}$") if name else re.compile("")
        found = [one for one in self if one.kind == kind and ends.search(one.name)]
        if len(found) != 1:
            names = ", ".join(one.name for one in self if one.kind == kind) or "none"
            raise DataError(f"{kind} {name!r} names {len(found)} objects; there are: {names}.")
        return found[0]

    def kinds(self) -> dict[str, list[str]]:
        """Return the names of the objects by their kinds, both in alphabetical order."""
        names: dict[str, list[str]] = {}
        for one in sorted(self, key=lambda one: (one.kind, one.name)):
            names.setdefault(one.kind, []).append(one.name)
        return names


def chart_dir() -> Path:
    """Return the chart's folder: the wheel's or the clone's.

    Raises:
        ConfigurationError: There is none.
    """
    package = Path(__file__).resolve().parent
    clone = package.parent.parent / "deploy" / "helm" / "nim-rag-cookbook"
    for place in (package / "_chart", clone):
        if (place / "Chart.yaml").is_file():
            return place
    raise ConfigurationError(f"The Helm chart is not in {clone}: install the package again.")


def values_file(name: str) -> dict[str, Any]:
    """Return what a values file says, such as `hosted` for `values-hosted.yaml`.

    Raises:
        ConfigurationError: There is no such file.
    """
    file = chart_dir() / f"values-{name}.yaml"
    if not file.is_file():
        known = sorted(
            one.stem.removeprefix("values-") for one in file.parent.glob("values-*.yaml")
        )
        raise ConfigurationError(f"There is no {file.name}: the chart has {', '.join(known)}.")
    loaded: dict[str, Any] = yaml.safe_load(file.read_text("utf-8"))
    return loaded


def render(
    values: str | None = None,
    *,
    release: str = RELEASE,
    namespace: str = NAMESPACE,
    overrides: Values | None = None,
) -> Manifests:
    """Return what `helm template` would write.

    Args:
        values: A values file, as for `values_file`; None for the chart's own values.
        release: Name of the release.
        namespace: Where it would go.
        overrides: Further values, which win; as `--set` would give them.

    Raises:
        ConfigurationError: Helm's engine is not installed, or the values are refused: a name is
            misspelt, or they contradict each other.
    """
    try:
        import helm_python
    except ModuleNotFoundError:
        raise ConfigurationError(f"Helm's engine is not installed: {INSTALL}.") from None
    given = _merged(values_file(values) if values else {}, overrides or {})
    with helm_python.Chart.load(chart_dir()) as chart:
        try:
            made: dict[str, str] = chart.render(given, name=release, namespace=namespace)
        except (helm_python.HelmValuesError, helm_python.HelmRenderError) as error:
            raise ConfigurationError(f"The chart refuses these values: {_reason(error)}") from None
    return manifests(made)


def manifests(made: Mapping[str, str]) -> Manifests:
    """Return the objects of a rendering.

    Args:
        made: The rendered text of each template, by its path, as Helm's engine gives it.
    """
    return Manifests(_objects(made))


def _objects(made: Mapping[str, str]) -> Iterator[Manifest]:
    for file, text in sorted(made.items()):
        if not file.endswith(".yaml"):
            continue  # what is said after an install
        for part in re.split(r"^---\s*$", text, flags=re.MULTILINE):
            data = yaml.safe_load(part)
            if data:
                yield Manifest(part.strip() + "\n", data)


def _child(node: yaml.Node | None, step: str | int) -> tuple[yaml.Node | None, yaml.Node | None]:
    """Return the node where a part begins, and its value; None for no such part."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == step:
                return key, value
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step], node.value[step]
    return None, None


def _merged(base: Values, over: Values) -> dict[str, Any]:
    """Return both, of which the second wins; mappings within mappings are merged as well."""
    merged = dict(base)
    for name, value in over.items():
        below = merged.get(name)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            merged[name] = _merged(below, value)
        else:
            merged[name] = value
    return merged


def _reason(error: Exception) -> str:
    """Return what Helm says, on one line and without the place in the template."""
    text = re.sub(r"^execution error at \(.*?\): ", "", str(error))
    return " ".join(text.split())
