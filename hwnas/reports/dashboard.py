"""A dashboard of the searches of a Weights & Biases project."""

from __future__ import annotations

from typing import Protocol

EXTRA = "hwnas report --wandb needs wandb-workspaces; pip install 'hwnas[dashboard]'"
NAME = "hwnas"


class Layout(Protocol):
    """A workspace of Weights & Biases; `url` is its address once it is saved."""

    url: str

    def save(self) -> object:
        """Save the workspace as a view of its project."""


def workspace(project: str, metrics: tuple[str, str]) -> Layout:
    """The workspace, not yet saved: progress per generation, fronts, and costs of the search.

    Runs are grouped by sweep and then by strategy, so that curves are means over seeds, with bands.

    Args:
        project: "entity/project".
        metrics: Quality and cost, e.g. ("val_acc", "latency_ms").

    Raises:
        ValueError: Another form of project, or wandb-workspaces is not installed.
    """
    entity, _, name = project.partition("/")
    if not entity or not name or "/" in name:
        raise ValueError(f"--wandb takes <entity>/<project>, not {project!r}")
    try:
        import wandb_workspaces.reports.v2 as panels
        import wandb_workspaces.workspaces as workspaces
    except ImportError:
        raise ValueError(EXTRA) from None
    quality, cost = metrics

    def lines(*names: str) -> list[object]:
        return [panels.LinePlot(title=each.replace("_", " "), x="Step", y=[each]) for each in names]

    sections = [
        workspaces.Section(
            name="Progress per generation",
            is_open=True,
            panels=lines("hypervolume", f"best_{quality}", f"best_{cost}", f"mean_{quality}", "diversity"),
        ),
        workspaces.Section(
            name="Answers",
            is_open=True,
            panels=[
                panels.ScatterPlot(
                    title=f"best networks: {quality} against {cost}",
                    x=panels.SummaryMetric(f"best.metrics.{cost}"),
                    y=panels.SummaryMetric(f"best.metrics.{quality}"),
                ),
                panels.WeavePanelSummaryTable(table_name="front"),
            ],
        ),
        workspaces.Section(
            name="Cost of the search",
            panels=lines("evaluations", "from_store", "front_size", "virtual_hours"),
        ),
    ]
    grouped = workspaces.RunsetSettings(
        groupby=[workspaces.Metric("Group"), workspaces.Config("strategy._target_")]
    )
    return workspaces.Workspace(
        entity=entity, project=name, name=NAME, sections=sections, runset_settings=grouped
    )


def create(project: str, metrics: tuple[str, str]) -> str:
    """Save the workspace as a view of the project; returns its address.

    Raises:
        ValueError: As `workspace`, or Weights & Biases does not answer.
    """
    layout = workspace(project, metrics)
    try:
        layout.save()
    except Exception as error:  # the client raises errors of many kinds
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"Weights & Biases did not take the dashboard of {project} ({first})") from None
    return str(layout.url)
