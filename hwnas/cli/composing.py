"""Hydra's loader of configurations, which takes files from elsewhere as data.

Hydra itself runs what its own node names: callbacks, launchers, sweepers, logging, environment variables.
Files below `--config-dir` or `hydra.searchpath` may come from anywhere, so they have no say in that node
beyond what a sweep varies; the command line, `conf/` and installed plugins do. Hydra has no place between
composing and running where this could be checked, so its loader is replaced.
"""

from __future__ import annotations

import os
from pathlib import Path

import hydra._internal.hydra as hydra_internal
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository, IConfigRepository
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.default_element import ResultDefault
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from hwnas.build import conf_folder, read_yaml
from hwnas.store import password

SWEEP = ("params", "n_trials", "n_jobs", "direction", "study_name", "max_batch_size")
"""Settings of `hydra.sweeper` that say what a sweep varies."""


def install() -> None:
    """Have Hydra use this loader in this process; jobs in other processes get it with their configuration."""
    hydra_internal.ConfigLoaderImpl = Loader  # type: ignore[misc]


class Files(FileConfigSource):
    """A folder of configurations, read as plain data; nothing outside of it is one of them."""

    def load_config(self, config_path: str) -> ConfigResult:
        """The configuration of a name."""
        file = Path(self.path) / self._normalize_file_name(config_path)
        config = read_yaml(file)
        with file.open(encoding="utf-8") as stream:
            header = self._get_header_dict(stream.read(512))
        return ConfigResult(
            config=config, path=f"{self.scheme()}://{self.path}", provider=self.provider, header=header
        )

    def is_config(self, config_path: str) -> bool:
        """Whether there is such a file."""
        return ".." not in Path(config_path).parts and super().is_config(config_path)


class Loader(ConfigLoaderImpl):
    """Hydra's loader, for folders of which only `conf/` may say what Hydra runs."""

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        super().__init__(config_search_path)
        self._replace_sources(self.repository)

    @staticmethod
    def _replace_sources(repository: IConfigRepository) -> None:
        sources = repository.get_sources()
        sources[:] = [
            Files(source.provider, source.path) if source.scheme() == "file" else source for source in sources
        ]

    def _process_config_searchpath(
        self, config_name: str | None, parsed_overrides: list[Override], repo: CachingConfigRepository
    ) -> None:
        super()._process_config_searchpath(config_name, parsed_overrides, repo)
        self._replace_sources(repo)

    def _load_single_config(self, default: ResultDefault, repo: IConfigRepository) -> ConfigResult:
        result = super()._load_single_config(default, repo)
        if result.path.startswith("file://") and result.path != f"file://{conf_folder()}":
            _check(result.config, f"{result.path.removeprefix('file://')}/{default.config_path}.yaml")
        return result

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """The composed configuration.

        Raises:
            ValueError: A file from elsewhere chooses a launcher or a sweeper, or Optuna has nothing to vary.
        """
        config = super().load_configuration(
            config_name, overrides, run_mode, from_shell, validate_sweep_overrides
        )
        store = OmegaConf.to_container(config).get("store")  # type: ignore[union-attr]
        url = store.get("url") if isinstance(store, dict) else None
        if isinstance(url, str) and password.without(url) != url:  # of a file; those of arguments are taken
            config.store.url = password.kept(url)
        given = {override.partition("=")[0].lstrip("+") for override in overrides}
        for group, option in config.hydra.runtime.choices.items():
            if group in ("hydra/launcher", "hydra/sweeper") and option != "basic" and group not in given:
                raise ValueError(f"a file chooses {group}={option}; only the command line does that")
        if run_mode == RunMode.MULTIRUN and config.hydra.runtime.choices["hydra/sweeper"] == "optuna":
            parsed = OverridesParser.create().parse_overrides(overrides)
            if not config.hydra.sweeper.params and not any(o.is_sweep_override() for o in parsed):
                raise ValueError(
                    "hydra/sweeper=optuna has no setting to vary, so all trials would be the same; give it "
                    "one, e.g. 'strategy.population_size=range(10,50,10)'"
                )
        return config


def _check(config: object, name: str) -> None:
    """Raise ValueError if a file has a say in what Hydra does, beyond what a sweep varies."""
    hydra = config.get("hydra") if isinstance(config, DictConfig) else None
    if hydra is None:
        return
    node = OmegaConf.to_container(hydra) if isinstance(hydra, DictConfig) else hydra
    for key, value in (node if isinstance(node, dict) else {"": node}).items():
        if key == "help":
            continue
        inner = value if key == "sweeper" and isinstance(value, dict) else {"": value}
        for setting, choice in inner.items():
            swept = choice if setting == "params" and isinstance(choice, dict) else {}
            if setting not in SWEEP or any("hydra" in str(varied) for varied in swept):
                place = ".".join(filter(None, ("hydra", str(key), str(setting))))
                raise ValueError(f"{os.path.normpath(name)} sets {place}; only the command line does that")
