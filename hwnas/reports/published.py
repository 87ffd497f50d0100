"""Published figures for the experiments in conf/ and for named architectures.

They are from the papers' tables, as the authors' repositories show them; docs/published.md has the commands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Paper:
    """A paper.

    Args:
        title: Title.
        venue: Conference or journal, and year.
        url: Address of the text.
    """

    title: str
    venue: str
    url: str


PAPERS = {
    "EvNAS": Paper(
        "Evolving Neural Architecture Using One Shot Model", "GECCO 2021", "https://arxiv.org/abs/2012.12540"
    ),
    "CMANAS": Paper(
        "Neural Architecture Search Using Covariance Matrix Adaptation Evolution Strategy",
        "Evolutionary Computation 2024",
        "https://arxiv.org/abs/2107.07266",
    ),
    "NEvoNAS": Paper(
        "Novelty Driven Evolutionary Neural Architecture Search",
        "GECCO Companion 2022",
        "https://arxiv.org/abs/2204.00188",
    ),
    "pEvoNAS": Paper(
        "Neural Architecture Search using Progressive Evolution",
        "GECCO 2022",
        "https://arxiv.org/abs/2203.01559",
    ),
    "HW-EvRSNAS": Paper(
        "Hardware Aware Evolutionary Neural Architecture Search using Representation Similarity Metric",
        "WACV 2024",
        "https://arxiv.org/abs/2311.03923",
    ),
    "MO-HDNAS": Paper(
        "Multi-Objective Hardware Aware Neural Architecture Search using Hardware Cost Diversity",
        "CVPR Workshops 2024",
        "https://arxiv.org/abs/2404.12403",
    ),
}


@dataclass(frozen=True)
class Experiment:
    """Published figures for an experiment.

    Args:
        method: Key of `PAPERS`.
        test_acc: Test accuracy in percent with its deviation, by the benchmark's name of the data set.
        of: The networks or runs of these accuracies, in words.
        fpga: Test accuracy on CIFAR-100, by the limit in ms on the FPGA's latency.
        diversity: Mean cost diversity of the last population, in ms², for the FPGA and CIFAR-10.
        differs: Differences of every run of the experiment from the paper, in words.
    """

    method: str
    test_acc: Mapping[str, str] = field(default_factory=dict)
    of: str = "mean and deviation over runs"
    fpga: Mapping[float, str] = field(default_factory=dict)
    diversity: str = ""
    differs: str = ""


_SMALL = "A small supernet on 16x16 images for few epochs, fewer generations, the seeded split."
_DIVERSITY = "178 (Fig. 6, three objectives, generation 100)"
_FPGA = {  # of HW-EvRSNAS, read off MO-HDNAS' Fig. 5 to about half a point
    limit: f"about {acc} % (read off MO-HDNAS' Fig. 5)"
    for limit, acc in {
        2.0: 64.7,
        3.0: 70.4,
        3.5: 70.9,
        4.0: 71.6,
        4.5: 71.6,
        5.0: 72.3,
        6.0: 73.3,
        7.0: 73.3,
        8.0: 73.5,
    }.items()
}
_NASBENCH201 = {
    "evnas": Experiment(
        "EvNAS",
        {"cifar10": "92.18 ± 1.11", "cifar100": "66.74 ± 3.08", "imagenet16": "39.00 ± 0.44"},
        differs="The table has the mean accuracy over a network's trainings.",
    ),
    "cmanas": Experiment(
        "CMANAS",
        {"cifar10": "92.05 ± 0.26", "cifar100": "67.81 ± 0.15", "imagenet16": "39.77 ± 0.57"},
        differs="100 epochs and generations are our choice (not published); the authors compute in float64.",
    ),
    "nevonas": Experiment(
        "NEvoNAS",
        {"cifar10": "93.50 ± 0.30", "cifar100": "71.51 ± 0.52", "imagenet16": "45.30 ± 0.82"},
        differs="The authors' code returns the network with the best test accuracy, ours the fittest one.",
    ),
    "pevonas": Experiment(
        "pEvoNAS",
        {"cifar10": "93.63 ± 0.42", "cifar100": "69.05 ± 1.99", "imagenet16": "39.98 ± 3.76"},
        differs="Supernets inherit weights, as in the better row of the paper's table; the published "
        "configuration does not.",
    ),
}
_H12 = Experiment(
    "CMANAS",
    {"cifar10": "94.06 ± 0.34", "cifar100": "72.26 ± 0.84", "imagenet16": "45.69 ± 0.88"},
    "CMANAS-h12-Ep100, mean and deviation over runs",
    differs="The authors look up one training at random; the table here has the mean.",
)
_TRAINED = "its best cell after 600 epochs of final training"
EXPERIMENTS: dict[str, Experiment] = {
    **{f"{name}_nasbench201": experiment for name, experiment in _NASBENCH201.items()},
    **{
        f"{name}_small": Experiment(of.method, of.test_acc, of.of, differs=f"{_SMALL} {of.differs}")
        for name, of in _NASBENCH201.items()
    },
    "nevonas_table": Experiment(
        "NEvoNAS",
        _NASBENCH201["nevonas"].test_acc,
        differs="True validation accuracies instead of a supernet's. " + _NASBENCH201["nevonas"].differs,
    ),
    "cmanas_h12_cifar10": _H12,
    "cmanas_h12_cifar100": _H12,
    "evnas_darts": Experiment("EvNAS", {"cifar10": "97.53 ± 0.06"}, _TRAINED),
    "cmanas_darts": Experiment("CMANAS", {"cifar10": "97.44", "cifar100": "83.24"}, _TRAINED),
    "nevonas_darts": Experiment("NEvoNAS", {"cifar10": "97.46", "cifar100": "83.95"}, _TRAINED),
    "pevonas_darts": Experiment("pEvoNAS", {"cifar10": "97.52", "cifar100": "82.59"}, _TRAINED),
    "hw_evrsnas": Experiment(
        "HW-EvRSNAS",
        fpga=_FPGA,
        differs="The penalty, settings of the genetic algorithm and candidates' training are not published.",
    ),
    "hw_evrsnas_table_fpga": Experiment(
        "HW-EvRSNAS",
        fpga=_FPGA,
        differs="True validation accuracies instead of similarity; the penalty and settings of the genetic "
        "algorithm are not published.",
    ),
    "mo_hdnas": Experiment(
        "MO-HDNAS",
        diversity=_DIVERSITY,
        differs="Operators of NSGA-II and candidates' training are not published.",
    ),
    "mo_hdnas_table_fpga": Experiment(
        "MO-HDNAS",
        diversity=_DIVERSITY,
        differs="True validation accuracies instead of similarity; operators of NSGA-II are not published.",
    ),
    "mo_hdnas_small": Experiment(
        "MO-HDNAS",
        diversity=_DIVERSITY,
        differs="Similarity of narrow networks on 16x16 images after a shorter training, fewer generations.",
    ),
}
"""By the experiment's name."""

ARCHITECTURES: dict[str, dict[str, str]] = {
    "evnas_a": {"cifar10": "97.53 ± 0.06", "cifar100": "83.63", "imagenet": "75.6"},
    "evnas_b": {"cifar10": "97.38 ± 0.06", "cifar100": "83.49", "imagenet": "75.6"},
    "evnas_c": {"cifar10": "97.37 ± 0.05", "cifar100": "83.14", "imagenet": "74.9"},
    "cmanas_c10a": {"cifar10": "97.44", "imagenet": "75.3"},
    "cmanas_c100a": {"cifar100": "83.24", "imagenet": "74.8"},
    "nevonas_c10a": {"cifar10": "97.46", "imagenet": "74.8"},
    "nevonas_c10b": {"cifar10": "97.37"},
    "nevonas_c10c": {"cifar10": "97.29"},
    "nevonas_c100a": {"cifar100": "83.95", "imagenet": "75.7"},
    "nevonas_c100b": {"cifar100": "82.93"},
    "nevonas_c100c": {"cifar100": "82.83"},
    "pevonas_c10a": {"cifar10": "97.52", "imagenet": "74.9"},
    "pevonas_c10b": {"cifar10": "97.36"},
    "pevonas_c10c": {"cifar10": "97.26"},
    "pevonas_c100a": {"cifar100": "82.59", "imagenet": "73.2"},
    "pevonas_c100b": {"cifar100": "82.44"},
    "pevonas_c100c": {"cifar100": "82.23"},
}
"""Published test accuracies of presets of the DARTS space in percent, by data set.

CIFAR: 600 epochs at C=36 and 20 cells with `trainer=darts` and `dataset.cutout=16`. ImageNet: 250 epochs at
C=48 and 14 cells with `trainer=imagenet`.
"""


def of_architecture(arch: str, benchmark: str) -> str:
    """A sentence with the published accuracy of a named architecture; empty if there is none."""
    value = ARCHITECTURES.get(arch, {}).get(benchmark)
    if value is None:
        return ""
    how = (
        "trainer=imagenet search_space.channels=48 search_space.num_cells=14"
        if benchmark == "imagenet"
        else "trainer=darts search_space.channels=36 search_space.num_cells=20 dataset.cutout=16"
    )
    return f"published for {arch}: {value} %, with {how} search_space.auxiliary=true"
