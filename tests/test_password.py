"""The password of a store is used, and in no file and no line that is written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy
from omegaconf import OmegaConf

from hwnas import report
from hwnas.__main__ import main
from hwnas.cli.overrides import prepared
from hwnas.store import password
from hwnas.store.evaluations import EvaluationStore

SECRET = "hunter2xyzzy"
BARE, FULL = "postgresql+psycopg://u@h/d", f"postgresql+psycopg://u:{SECRET}@h/d"
TOY = ["experiment=toy", "generations=2"]


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(password.VARIABLE, "")
    monkeypatch.setenv("PGPASSFILE", "/dev/null")


@pytest.fixture
def guarded(postgres: str) -> Iterator[str]:
    """The URL, with a password, of a database whose server asks this user for it."""
    name = "guarded_" + postgres.rpartition("_")[2]
    engine = sqlalchemy.create_engine(postgres, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE ROLE {name} LOGIN SUPERUSER PASSWORD '{SECRET}'")
        rules = Path(connection.exec_driver_sql("SHOW hba_file").scalar_one())
        before = rules.read_text()
        rules.write_text(f"host all {name} 127.0.0.1/32 scram-sha-256\n{before}")
        connection.exec_driver_sql("SELECT pg_reload_conf()")
    yield postgres.replace("//hwnas@", f"//{name}:{SECRET}@")
    with engine.connect() as connection:
        rules.write_text(before)
        connection.exec_driver_sql("SELECT pg_reload_conf()")
    engine.dispose()


def leaks(folder: Path) -> list[str]:
    """Files with the password in them, and names of files."""
    return [
        str(path)
        for path in folder.rglob("*")
        if SECRET in path.name or (path.is_file() and SECRET.encode() in path.read_bytes())
    ]


def test_no_byte_of_a_run_has_it(
    run_hwnas,
    tmp_path: Path,
    guarded: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A run, its log of Weights & Biases, its page, the store's table, a sweep, an error, and resuming."""
    said = run_hwnas("search", *TOY, f"store.url={guarded}", "logger=wandb", "hydra.run.dir=run")
    assert SECRET not in said.stdout + said.stderr
    run = tmp_path / "run"
    bare = password.without(guarded)
    assert bare in (run / ".hydra" / "config.yaml").read_text()
    assert (run / "wandb").is_dir()
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str, code: int = 0) -> str:
        monkeypatch.setenv(password.VARIABLE, "")
        try:
            ended: object = main(list(arguments))
        except SystemExit as error:
            ended = error.code
        assert ended == code
        out, err = capfd.readouterr()
        assert SECRET not in out + err
        return str(out + err)

    assert f"{bare}: " in command("store", f"store.url={guarded}")
    command("search", "-m", *TOY, f"store.url={guarded}", "logger=csv", "seed=1,2")
    error = command("search", *TOY, f"store.url={guarded}x", "logger=csv", "hydra.run.dir=no", code=1)
    assert f"store {bare}x: " in error
    (run / "result.json").unlink()
    error = command("search", "resume=run", code=1)
    assert "no password supplied; give store.url= with its password, or PGPASSWORD" in error
    command("search", "resume=run", f"store.url={guarded}")
    (run / "result.json").unlink()
    monkeypatch.setenv("PGPASSWORD", SECRET)
    command("search", "resume=run")
    assert (run / "result.json").is_file()
    assert leaks(tmp_path) == []


def test_from_words_from_a_file_and_from_the_environment(
    tmp_path: Path, guarded: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """With `${oc.env:...}` the password stays where it is; in a file of one's own it stays there, too."""
    bare = password.without(guarded)
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "db.yaml").write_text(
        f"# @package _global_\ndefaults: [toy]\nstore: {{url: '{guarded}'}}\n"
    )
    monkeypatch.setenv("MY_STORE", guarded)
    monkeypatch.setenv("MY_WORD", SECRET)
    asking = guarded.replace(SECRET, "${oc.env:MY_WORD}")
    stored = {"word": bare, "file": bare, "url": "${oc.env:MY_STORE}", "part": asking}
    words = {
        "word": ["experiment=toy", f"store.url='{guarded}'"],
        "file": [f"--config-dir={tmp_path / 'mine'}", "experiment=db"],
        "url": ["experiment=toy", "store.url='${oc.env:MY_STORE}'"],
        "part": ["experiment=toy", f"store.url='{asking}'"],
    }
    for name, given in words.items():
        monkeypatch.setenv(password.VARIABLE, "")
        folder = tmp_path / "runs" / name
        assert main(["search", *given, "generations=1", "logger=csv", f"hydra.run.dir={folder}"]) == 0
        config = OmegaConf.to_container(OmegaConf.load(folder / ".hydra" / "config.yaml"))
        assert isinstance(config, dict)
        assert config["store"]["url"] == stored[name]
        report(folder)
    assert leaks(tmp_path / "runs") == []
    assert SECRET not in "".join(capfd.readouterr())


def test_the_page_of_an_old_folder_hides_it(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert main(["search", "experiment=toy", "generations=1", "logger=csv", f"hydra.run.dir={folder}"]) == 0
    for name, content in (("config", {"store": {"url": FULL}}), ("overrides", [f"store.url={FULL}"])):
        path = folder / ".hydra" / f"{name}.yaml"
        before = OmegaConf.load(path)
        OmegaConf.save(
            OmegaConf.merge(before, content) if name == "config" else OmegaConf.create(content), path
        )
    (page,) = report(folder)
    assert SECRET not in page.read_text()
    assert f"store.url={BARE}" in page.read_text()


def test_no_other_server_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A foreign folder can name any server as its store."""
    assert password.taken([f"store.url={FULL}", f"store.url='{FULL}'", "seed=1"]) == [
        f"store.url={BARE}",
        f"store.url='{BARE}'",
        "seed=1",
    ]
    assert password.found(BARE) == FULL
    for other in (BARE.replace("@h", "@evil"), BARE.replace("u@", ""), f"{BARE}?host=evil", BARE + "2"):
        assert password.found(other) == other
    assert password.found("sqlite:///a.sqlite") == "sqlite:///a.sqlite"


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        (FULL, BARE),
        ("postgresql://u:p:a/b@h:5432/d", "postgresql://u@h:5432/d"),
        ("postgresql://h/d?user=u&password=p&x=1", "postgresql://h/d?user=u&password=&x=1"),
        ("postgresql://h/d?sslPassword=p", "postgresql://h/d?sslPassword="),
        ("postgresql://u:${oc.env:PW}@h/d", "postgresql://u:${oc.env:PW}@h/d"),
        ("sqlite:///a:b.sqlite", "sqlite:///a:b.sqlite"),
        ("postgresql://h:5432/d", "postgresql://h:5432/d"),
        ("a: postgresql://u:p@h/d\nb: c@d", "a: postgresql://u@h/d\nb: c@d"),
        ("password=none here", "password=none here"),
    ],
)
def test_urls_without_passwords(text: str, bare: str) -> None:
    assert password.without(text) == bare
    assert password.hidden({"a": [text, 1, None]}) == {"a": [bare, 1, None]}


def test_other_settings_with_a_password_are_refused() -> None:
    with pytest.raises(ValueError, match=r"storage=postgresql://u@h/d has a password.*PGPASSWORD") as error:
        prepared("search", [f"hydra.sweeper.storage=postgresql://u:{SECRET}@h/d"])
    assert SECRET not in str(error.value)


def test_an_unusable_url_is_said_without_it() -> None:
    for url in (
        f"mysql://u:{SECRET}@h/d",
        f"what://u:{SECRET}@h/d",
        f"postgresql+psycopg://u:{SECRET}@127.0.0.1:1/d",
    ):
        with pytest.raises(ValueError, match="store") as error:
            EvaluationStore(url, "run")
        assert SECRET not in str(error.value)
