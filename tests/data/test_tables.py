from __future__ import annotations

import bz2
import contextlib
import hashlib
import io
import json
import os
import pickle
import re
import shutil
import tarfile
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hwnas.cli.data import command
from hwnas.data.tables import FBNET_OPS, SIZE, fbnet_operations, read_table
from hwnas.devices.benchmark import benchmark_device
from hwnas.files import data_folder
from hwnas.spaces.nasbench201 import NasBench201
from hwnas.spaces.nasbench201.encoding import OPS
from hwnas.tables.convert import DATASETS, METRICS, write_table
from hwnas.tables.pickles import TORCH_MAGIC, loads, read_pickle, read_torch
from hwnas.tables.verify import TABLES

SAMPLE = (0, 11, 284)


def found(name: str) -> Path:
    path = data_folder() / name
    if not path.exists():
        pytest.skip(f"{path} is missing; HWNAS_DATA names the folder that has it")
    return path


def refused(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 1) -> str:
    """The one line with which the command refuses."""
    assert command(list(arguments)) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("hwnas data: error: ")
    assert err.count("\n") == 1
    return err.strip()


# Pickles


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("compress", [bytes, bz2.compress])
@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.system, "touch {}", f"{os.system.__module__}.system"),
        (eval, "open({!r}, 'w')", "eval"),
        (exec, "open({!r}, 'w')", "exec"),
        (pickle.loads, b"", "loads"),
        (getattr, (OrderedDict, "__init__"), "getattr"),
    ],
)
def test_a_malicious_pickle_does_not_run(
    function: Any, arguments: Any, name: str, compress: Any, protocol: int, tmp_path: Path
) -> None:
    mark = tmp_path / "ran"
    if isinstance(arguments, str):
        arguments = arguments.format(str(mark))
    call = Calls(function, *(arguments if isinstance(arguments, tuple) else (arguments,)))
    content = compress(pickle.dumps({"nasbench201": [1.0, {"deep": call}]}, protocol))
    with pytest.raises(ValueError, match=rf"^evil holds \w+\.{name.split('.')[-1]}, which is not read"):
        loads(content, "evil")
    assert not mark.exists()


def test_other_ways_to_a_function() -> None:
    for content in (
        b"\x80\x04\x8c\x0bcollections\x8c\x1eOrderedDict.__init__.__class__\x93.",
        b"\x80\x04\x8c\x05numpy\x8c\x04load\x93.",
        b"(S'touch ran'\nios\nsystem\n.",
    ):
        with pytest.raises(ValueError, match="which is not read from a foreign pickle"):
            loads(content, "evil")
    for content in (b"Psome id\n.", b"\x82\x01."):  # a persistent object, a registered extension
        with pytest.raises(ValueError, match="evil is not a readable pickle"):
            loads(content, "evil")


@pytest.mark.parametrize(
    "named", [b"cnumpy\ndtype\n", b"cnumpy.core.multiarray\nscalar\n", b"cbuiltins\nset\n"]
)
def test_what_a_pickle_may_call_it_cannot_change(named: bytes) -> None:
    for state in (
        b"}S'real'\nI1\nsb.",
        b"N}S'_call'\nccollections\nOrderedDict\ns\x86b.",
        b"N}S'x'\nI1\ns\x86b.",
    ):
        with pytest.raises(ValueError, match="evil is not a readable pickle"):
            loads(named + state, "evil")
    assert loads(pickle.dumps(np.float64(1.5)), "good") == 1.5


def test_a_class_is_no_value_of_an_array() -> None:
    state = b"(I1\n(K\x02t%sI00\n%st"
    build = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
    double = b"cnumpy\ndtype\n(U\x02f8K\x00K\x01tR"
    good = build + state % (double, b"C\x10" + np.array([1.0, 2.0]).tobytes()) + b"b."
    assert loads(b"\x80\x03" + good, "good").tolist() == [1, 2]
    for data in (b"C\x08" + bytes(8), b"(lp0\nI1\naI2\na", b"cnumpy\ndtype\n"):
        with pytest.raises(ValueError, match="an array without its bytes"):
            loads(b"\x80\x03" + build + state % (double, data) + b"b.", "evil")
    with pytest.raises(ValueError, match="a class where a value is expected"):
        loads(b"cnumpy\nndarray\n(I3\ntR.", "evil")


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_come_back(protocol: int) -> None:
    value = {
        ("cifar10", 777): OrderedDict([(0, 1.5), (1, np.float64(2.5))]),
        "more": [None, True, b"\xff\x00", "text", {1, 2}, frozenset([3]), 1 << 80],
        "scalars": [np.float32(0.1), np.int64(-3), np.bool_(True), np.str_("é")],
        "arrays": [
            np.arange(6, dtype=np.int8).reshape(2, 3),
            np.arange(6.0).reshape(2, 3).T,
            np.array([0.1, -1], dtype=">f4"),
            np.array(["a", "bcd"]),
            np.array([]),
        ],
    }
    again = loads(pickle.dumps(value, protocol), "x")
    assert {k: v for k, v in again.items() if k != "arrays"} == {
        k: v for k, v in value.items() if k != "arrays"
    }
    assert [type(x) for x in again["scalars"]] == [type(x) for x in value["scalars"]]
    for ours, theirs in zip(again["arrays"], value["arrays"], strict=True):
        assert np.asarray(ours).dtype.newbyteorder("=") == theirs.dtype.newbyteorder("=")
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_of_objects_hold_what_is_admitted(protocol: int) -> None:
    value = np.array([[{"arch_str": "|none~0|"}, 1, None]], dtype=object)
    assert loads(pickle.dumps(value, protocol), "x").tolist() == value.tolist()
    with pytest.raises(ValueError, match=r"evil holds \w+.exec, which is not read"):
        loads(pickle.dumps(np.array([exec, 1], dtype=object), protocol), "evil")
    with pytest.raises(ValueError, match="evil holds numpy values of type 'V8', which is not read"):
        loads(pickle.dumps(np.zeros(2, dtype=[("a", "f8")]), protocol), "evil")


def test_what_expands_too_far_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hwnas.tables.pickles.MAX_BYTES", 1000)
    assert loads(bz2.compress(pickle.dumps(bytes(900))), "x") == bytes(900)
    with pytest.raises(ValueError, match="it expands to more than 1,000 bytes"):
        loads(bz2.compress(pickle.dumps(bytes(1000))), "x")


class Tensor:
    """Pickles as torch's tensors and parameters do."""

    def __reduce__(self) -> tuple[Any, ...]:
        import torch

        return torch._utils._rebuild_tensor_v2, (Storage(), 0, (2,), (1,), False, OrderedDict())


class Storage:
    pass


class TorchPickler(pickle.Pickler):
    def persistent_id(self, obj: object) -> Any:
        import torch

        return ("storage", torch.FloatStorage, "0", "cpu", 2) if isinstance(obj, Storage) else None


def save(content: Any, file: Path, zipped: bool) -> Path:
    """Both formats of torch.save, as torch's documentation of serialization has them."""
    stream = io.BytesIO()
    TorchPickler(stream, 2).dump(content)
    if zipped:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("saved/data.pkl", stream.getvalue())
            archive.writestr("saved/data/0", bytes(8))
            archive.writestr("saved/version", "3")
    else:
        start = [pickle.dumps(part, 2) for part in (TORCH_MAGIC, 1001, {"little_endian": True})]
        file.write_bytes(b"".join([*start, stream.getvalue(), pickle.dumps(["0"], 2), bytes(16)]))
    return file


@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_torch(zipped: bool, tmp_path: Path) -> None:
    content = {"weights": OrderedDict(conv=Tensor()), "accuracy": np.float64(93.5), 3: ["text"]}
    file = save(content, tmp_path / "x.pth", zipped)
    assert read_torch(file) == {"weights": {"conv": None}, "accuracy": 93.5, 3: ["text"]}
    mark = tmp_path / "ran"
    save({"weights": Calls(os.system, f"touch {mark}")}, file, zipped)
    with pytest.raises(ValueError, match=r"x.pth holds posix.system, which is not read"):
        read_torch(file)
    assert not mark.exists()
    whole = save(content, file, zipped).read_bytes()
    for length in range(0, file.stat().st_size - 30, 7):
        file.write_bytes(whole[:length])
        with contextlib.suppress(ValueError):  # the end holds nothing that is read
            assert read_torch(file)["accuracy"] == 93.5


@pytest.mark.parametrize("zipped", [True, False])
def test_files_that_torch_itself_has_saved(zipped: bool, tmp_path: Path) -> None:
    import torch

    content = OrderedDict(a=torch.ones(3), b=torch.nn.Parameter(torch.ones(2)), c={"d": [1, 2.5]})
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    assert read_torch(tmp_path / "x.pth") == {"a": None, "b": None, "c": {"d": [1, 2.5]}}


@pytest.mark.parametrize("compress", [bytes, bz2.compress])
def test_a_truncated_pickle_never_passes(compress: Callable[[bytes], bytes]) -> None:
    content = compress(pickle.dumps({"a": np.arange(3.0), "b": [1, "x", np.float64(2)]}, 4))
    for length in range(len(content)):
        with pytest.raises(ValueError, match=r"x is not a readable pickle|x holds"):
            loads(content[:length], "x")


# NAS-Bench-201


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    """A copy of the real files."""
    folder = tmp_path / "sample"
    shutil.copytree(found("nats_bench_sample"), folder, copy_function=shutil.copyfile)
    folder.chmod(0o755)
    return folder


def test_the_official_sample(
    sample: Path, tmp_path: Path, table_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "new" / "folder"
    assert command(["nasbench201", f"source={sample}", f"to={to}", "partial=true"]) == 0
    said = "3 of 15,625 architectures, cifar10, cifar100, imagenet16"
    assert capsys.readouterr() == (f"{to / 'nasbench201.npz'}: {said}\n", "")
    assert [file.name for file in to.iterdir()] == ["nasbench201.npz"]
    ours, theirs = read_table(to / "nasbench201.npz"), read_table(table_path)
    others = np.setdiff1d(np.arange(SIZE), SAMPLE)
    rows = list(SAMPLE)
    for key, values in theirs.items():
        assert (ours[key].dtype, ours[key].shape) == (values.dtype, values.shape), key
        if key in ("arch_str", "arch_ops", "ops"):
            assert np.array_equal(ours[key], values)
        elif key.endswith("_M"):  # the table's are sums in closed form
            np.testing.assert_allclose(ours[key][rows], values[rows], rtol=1e-14)
        else:
            assert np.array_equal(ours[key][rows], values[rows]), key
        if values.dtype.kind == "f":
            assert np.isnan(ours[key][others]).all()
    assert not ours["n_seeds_200"][others].any()
    assert {key for key in ours if key not in theirs} == {
        key.replace("cifar100", "imagenet16") for key in theirs if key.startswith("cifar100")
    }
    assert ours["imagenet16_test_12"][0] == pytest.approx(17, abs=1e-6)
    assert ours["imagenet16_valid_200"][0] == pytest.approx(
        (28.9333333 + 28.3333334 + 27.3666667) / 3, abs=1e-6
    )
    assert ours["imagenet16_params_M"][0] == 0.136456

    assert command(["verify", str(to / "nasbench201.npz")]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{to / 'nasbench201.npz'}: good, {said}\n  sha256 ")
    assert "cifar100_valtest_200_seeds 15625x3" in out
    err = refused(capsys, "nasbench201", f"source={sample}", f"to={to}", "partial=true")
    assert "is there already; a partial table does not replace it" in err


def test_a_partial_source_needs_to_be_allowed(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "to"
    err = refused(capsys, "nasbench201", f"source={sample}", f"to={to}")
    assert "has 3 of 15,625 architectures (the first that is missing: 1); partial=true" in err
    err = refused(capsys, "nasbench201", f"source={sample}", f"to={to}", "partial=yes", code=2)
    assert "partial=yes is neither true nor false" in err
    for index in SAMPLE:
        (sample / f"{index:06d}.pickle.pbz2").unlink()
    err = refused(capsys, "nasbench201", f"source={sample}", f"to={to}", "partial=true")
    assert "has none of the 15,625 architectures" in err
    (sample / "meta.pickle.pbz2").unlink()
    err = refused(capsys, "nasbench201", f"source={sample}", f"to={to}", "partial=true")
    assert "has no meta.pickle.pbz2" in err
    err = refused(capsys, "nasbench201", f"source={sample / 'nothing'}", f"to={to}")
    assert "nothing not found; looked for " in err
    assert "NATS-tss-v1_0-3ffb9-simple.tar (1.1 GB) from https://" in err
    assert not to.exists()


def rewrite(file: Path, change: Callable[[Any], Any]) -> None:
    content = read_pickle(file)
    changed = change(content)
    file.write_bytes(bz2.compress(pickle.dumps(content if changed is None else changed, 4)))


def first(record: Any, dataset: str = "cifar10") -> Any:
    return next(run for key, run in record["200"]["all_results"].items() if key[0] == dataset)


def without(record: Any, dataset: str) -> None:
    for key in [key for key in record["200"]["all_results"] if key[0] == dataset]:
        del record["200"]["all_results"][key]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("12") and None, "000011.pickle.pbz2 has no '12'"),
        (lambda r: r["200"].pop("all_results") and None, r"\['200'\] has no 'all_results'"),
        (lambda r: r["200"].update(all_results=[]), r"\['all_results'\] is no dictionary"),
        (lambda r: r["200"].update(arch_index=12), r"\['200'\] is not architecture 11,"),
        (lambda r: r["200"].update(arch_str="|none~0|"), r"\['200'\] is not architecture 11,"),
        (lambda r: without(r, "cifar100"), "has no training on cifar100"),
        (lambda r: first(r)["eval_acc1es"].pop("ori-test@199") and None, "has no 'ori-test@199'"),
        (lambda r: first(r)["eval_acc1es"].update({"ori-test@199": 101.0}), "not a number from 0 to 100"),
        (lambda r: first(r)["eval_acc1es"].update({"ori-test@199": float("nan")}), "is nan, not a number"),
        (lambda r: first(r, "cifar100").update(train_times={}), "no dictionary of seconds"),
        (lambda r: first(r).update(flop="many"), "'many', not a number"),
        (lambda r: [1], "000011.pickle.pbz2 is no dictionary"),
    ],
)
def test_bad_records(
    change: Any, message: str, sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(sample / "000011.pickle.pbz2", change)
    to = tmp_path / "to"
    err = refused(capsys, "nasbench201", f"source={sample}", f"to={to}", "partial=true")
    assert re.search(message, err), err
    assert not to.exists()


def test_bad_files(sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("nasbench201", f"source={sample}", f"to={tmp_path / 'to'}", "partial=true")
    file = sample / "000011.pickle.pbz2"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert "000011.pickle.pbz2 is not a readable pickle" in refused(capsys, *arguments)
    mark = tmp_path / "ran"
    file.write_bytes(bz2.compress(pickle.dumps({"12": Calls(os.system, f"touch {mark}")})))
    assert "000011.pickle.pbz2 holds posix.system, which is not read" in refused(capsys, *arguments)
    assert not mark.exists()
    file.write_bytes(whole)
    rewrite(sample / "meta.pickle.pbz2", lambda meta: {"meta_archs": meta["meta_archs"][:-1]})
    assert "meta_archs has 15,624 architectures, not 15,625" in refused(capsys, *arguments)
    meta = sample / "meta.pickle.pbz2"
    rewrite(meta, lambda meta: {"meta_archs": [*meta["meta_archs"], meta["meta_archs"][0]]})
    assert "names an architecture twice" in refused(capsys, *arguments)
    rewrite(meta, lambda meta: {"meta_archs": [*meta["meta_archs"][:-1], "|max~0|"]})
    assert "meta_archs: '|max~0|' has 1 nodes, not 3" in refused(capsys, *arguments)
    rewrite(meta, lambda meta: {"archs": 1})
    assert "meta.pickle.pbz2 has no 'meta_archs'" in refused(capsys, *arguments)
    assert not (tmp_path / "to").exists()


@pytest.fixture
def archive(sample: Path, tmp_path: Path) -> Path:
    """The sample as a .tar, as it is published."""
    file = tmp_path / "NATS-tss-v1_0-3ffb9-simple.tar"
    with tarfile.open(file, "w") as tar:
        tar.add(sample, arcname="NATS-tss-v1_0-3ffb9-simple")
    return file


def pth(sample: Path, file: Path, zipped: bool = False) -> Path:
    """The sample's content in the layout of NAS-Bench-201's .pth."""
    infos = {}
    for index in SAMPLE:
        record = read_pickle(sample / f"{index:06d}.pickle.pbz2")
        infos[index] = {"full": record["200"], "less": record["12"]}
    content = {**read_pickle(sample / "meta.pickle.pbz2"), "arch2infos": infos}
    return save(content, file, zipped)


def test_all_forms_of_the_source_give_one_table(
    sample: Path, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = [
        f"source={archive}",
        f"source={pth(sample, tmp_path / 'old.pth')}",
        f"source={pth(sample, tmp_path / 'new.pth', zipped=True)}",
        "source=sample",  # relative to the data folder
    ]
    monkeypatch.setenv("HWNAS_DATA", str(tmp_path))
    to = tmp_path / "to"
    assert command(["nasbench201", f"source={sample}", f"to={to}", "partial=true"]) == 0
    expected = (to / "nasbench201.npz").read_bytes()
    for number, source in enumerate(sources):
        assert command(["nasbench201", source, f"to={to / str(number)}", "partial=true"]) == 0
        assert (to / str(number) / "nasbench201.npz").read_bytes() == expected
    monkeypatch.chdir(tmp_path)  # where the archive lies
    assert command(["nasbench201", f"to={to / 'found'}", "partial=true"]) == 0
    assert (to / "found" / "nasbench201.npz").read_bytes() == expected


def test_bad_archives(
    sample: Path, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "to"

    def refuses(source: Path) -> str:
        return refused(capsys, "nasbench201", f"source={source}", f"to={to}", "partial=true")

    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    assert "simple.tar" in refuses(archive)
    (tmp_path / "text.tar").write_text("not an archive")
    assert "text.tar is none of NATS-Bench's" in refuses(tmp_path / "text.tar")
    file = save({"meta_archs": []}, tmp_path / "x.pth", zipped=True)
    assert "x.pth has no 'arch2infos'" in refuses(file)
    save([1], file, zipped=False)
    assert "x.pth is no dictionary with 'meta_archs'" in refuses(file)
    file.write_bytes(b"PK")
    assert "x.pth is not a readable file saved by torch" in refuses(file)
    meta = read_pickle(sample / "meta.pickle.pbz2")
    save({**meta, "arch2infos": {0: {"full": {}}}}, file, zipped=False)
    assert "['arch2infos'][0] has no 'less'" in refuses(file)
    assert not to.exists()


def test_a_source_without_imagenet16(sample: Path, tmp_path: Path) -> None:
    def drop(record: Any) -> None:
        for part in record.values():
            for key in [key for key in part["all_results"] if key[0] == "ImageNet16-120"]:
                del part["all_results"][key]

    for index in SAMPLE:
        rewrite(sample / f"{index:06d}.pickle.pbz2", drop)
    assert command(["nasbench201", f"source={sample}", f"to={tmp_path / 'to'}", "partial=true"]) == 0
    table = read_table(tmp_path / "to" / "nasbench201.npz")
    assert not [key for key in table if key.startswith("imagenet16")]
    assert set(table) == set(read_table(found("nasbench201.npz")))


def test_a_whole_source(table_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of all architectures, written back in the layout of the .pth, becomes the table again."""
    table = read_table(table_path)
    rows: dict[str, list[Any]] = {key: values.tolist() for key, values in table.items()}

    def run(epochs: int, seconds: float, prefix: str, index: int, **accuracies: float) -> dict[str, Any]:
        return {
            "eval_acc1es": {f"{name.replace('_', '-')}@{epochs - 1}": x for name, x in accuracies.items()},
            "train_times": OrderedDict([(0, seconds)]),
            "params": rows[f"{prefix}_params_M"][index],
            "flop": rows[f"{prefix}_flops_M"][index],
        }

    def info(index: int, epochs: int) -> dict[str, Any]:
        of = {key: values[index] for key, values in rows.items() if key != "ops"}
        valid, test = of[f"cifar10_valid_{epochs}"], of[f"cifar10_test_{epochs}"]
        runs: dict[tuple[str, int], Any] = {("cifar10", 777): run(epochs, 1, "cifar10", index, ori_test=test)}
        seeds = (
            list(zip((777, 888, 999), of["cifar10_valid_200_seeds"], strict=True)) if epochs == 200 else []
        )
        for seed, accuracy in seeds or [(111, valid)]:
            if accuracy == accuracy:
                seconds = of["cifar10_train_seconds_200"]
                runs["cifar10-valid", seed] = run(epochs, seconds, "cifar10", index, x_valid=accuracy)
        both = of["cifar100_valtest_200_seeds"] if epochs == 200 else [0.0]
        for seed, accuracy in zip((777, 888, 999), both, strict=False):
            if accuracy == accuracy:
                runs["cifar100", seed] = run(
                    epochs,
                    of["cifar100_train_seconds_200"],
                    "cifar100",
                    index,
                    x_valid=of[f"cifar100_valid_{epochs}"],
                    x_test=of[f"cifar100_test_{epochs}"],
                    ori_test=accuracy,
                )
        return {"arch_index": index, "arch_str": of["arch_str"], "all_results": runs}

    infos = {index: {"full": info(index, 200), "less": info(index, 12)} for index in range(SIZE)}
    file = save({"meta_archs": rows["arch_str"], "arch2infos": infos}, tmp_path / "x.pth", zipped=False)
    monkeypatch.setenv("HWNAS_DATA", str(tmp_path))
    assert command(["nasbench201", f"source={file}"]) == 0
    ours = read_table(tmp_path / "nasbench201.npz")
    assert set(ours) == set(table)
    for key, values in table.items():
        if values.dtype.kind == "f":  # means of accuracies that the table keeps as float32
            np.testing.assert_allclose(ours[key], values, rtol=0, atol=1e-5)
        else:
            assert np.array_equal(ours[key], values)
    assert (ours["cifar10_test_200"] == table["cifar10_test_200"]).all()


def is_small_and_fast(file: Path) -> bool:
    best = np.inf
    for _ in range(3):
        start = time.process_time()  # other work on the machine does not count
        table = read_table(file)
        best = min(best, time.process_time() - start)
    return best < 0.3 and sum(values.nbytes for values in table.values()) < 50e6


def test_the_table_is_small_and_loads_fast(table_path: Path) -> None:
    assert is_small_and_fast(table_path)


# HW-NAS-Bench


@pytest.fixture(scope="module")
def official() -> dict[str, Any]:
    """A file in HW-NAS-Bench's layout: its published records, and made-up costs elsewhere."""
    records = json.loads(found("hwnasbench_published_examples.json").read_text())
    names = read_table(found("nasbench201.npz"))["arch_str"].tolist()
    rng = np.random.default_rng(0)
    units = ("latency", "energy")
    cells: dict[str, Any] = {
        dataset: {
            "config": [
                {"name": "infer.tiny", "C": 16, "N": 5, "arch_str": name, "num_classes": 10} for name in names
            ]
        }
        for dataset in DATASETS.values()
    }
    blocks: dict[str, dict[str, Any]] = {}
    for record in records:
        for metric, value in record["metrics"].items():
            if metric.endswith("intensity") or not metric.split("_")[1].startswith(units):
                continue
            if record["space"] == "nasbench201":
                part = cells[record["dataset"]]
                part.setdefault(metric, rng.uniform(1, 2, SIZE).tolist())[record["arch"]] = value
                continue
            for name in fbnet_operations(record["arch"], record["dataset"]):
                blocks.setdefault(metric, {}).setdefault(name, 0.0)
    for metric, costs in blocks.items():
        for dataset in ("cifar100", "ImageNet"):
            # The three networks differ in their last two layers: the benchmark prints the sums only, so put
            # all of the cost there. Of the layer before the last, operation 0 is in them 3, 3 and 2 times.
            sums = [
                record["metrics"][metric]
                for record in records
                if record["space"] == "fbnet" and record["dataset"] == dataset
            ]
            kept, changed = ([0] * 22, [0] * 20 + [1, 1])
            *_, before, last, _, _, _ = fbnet_operations(kept, dataset)
            *_, new_before, new_last, _, _, _ = fbnet_operations(changed, dataset)
            shared = max(0.0, sums[1] - sums[2])
            costs[before], costs[last] = shared, sums[0] - 3 * shared
            costs[new_last] = sums[1] - 3 * shared
            costs[new_before] = sums[2] - 2 * shared - costs[new_last]
    for part in cells.values():
        part["edgetpu_latency"][7] = -1
        part["pixel3_latency"] = np.array(part["pixel3_latency"])
        part["fpga_energy"] = [np.float64(value) for value in part["fpga_energy"]]
    return {"nasbench201": cells, "fbnet": blocks}


@pytest.fixture
def copied(official: dict[str, Any]) -> dict[str, Any]:
    """To be changed: the dictionaries are new, the columns are not."""
    return {space: {name: dict(part) for name, part in parts.items()} for space, parts in official.items()}


def test_published_records(
    official: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    records = json.loads(found("hwnasbench_published_examples.json").read_text())
    names = read_table(found("nasbench201.npz"))["arch_ops"]
    file = tmp_path / "HW-NAS-Bench-v1_0.pickle"
    file.write_bytes(pickle.dumps(official, 4))
    monkeypatch.setenv("HWNAS_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert command(["hwnasbench"]) == 0  # found by its name
    out = capsys.readouterr().out
    unsupported = "cifar10_edgetpu: 1, cifar100_edgetpu: 1, imagenet16_edgetpu: 1"
    assert f"15,625 architectures, 3 data sets, 6 devices; unsupported {unsupported}\n" in out
    table = read_table(tmp_path / "hwnasbench_nasbench201.npz")
    look_up = read_table(tmp_path / "hwnasbench_fbnet.npz")
    assert (table["arch_ops"] == names).all()
    assert table["arch_ops"].dtype == np.int8
    assert table["ops"].tolist() == list(OPS)
    assert len(table) == 2 + 3 * 9
    assert table["cifar100_edgetpu_latency_ms"][7] == np.inf
    ours = {official: name for name, official in DATASETS.items()}
    checked = 0
    for record in records:
        for metric, value in record["metrics"].items():
            if metric not in METRICS:
                continue
            if record["space"] == "nasbench201":
                assert table[f"{ours[record['dataset']]}_{METRICS[metric]}"][record["arch"]] == value
            else:
                costs = dict(
                    zip(
                        look_up[f"{METRICS[metric]}_ops"].tolist(),
                        look_up[METRICS[metric]].tolist(),
                        strict=True,
                    )
                )
                assert (
                    sum(costs[name] for name in fbnet_operations(record["arch"], record["dataset"])) == value
                )
            checked += 1
    assert checked == 9 * 9 + 6 * 8
    for metric, costs in official["fbnet"].items():
        assert look_up[f"{METRICS[metric]}_ops"].tolist() == list(costs)
        assert look_up[METRICS[metric]].tolist() == list(costs.values())
    assert command(["verify"]) == 0
    assert capsys.readouterr().out.count(": good, ") == 2
    assert is_small_and_fast(tmp_path / "hwnasbench_nasbench201.npz")

    # and the devices read it
    space = NasBench201()
    dataset = SimpleNamespace(name="imagenet16_120", benchmark="imagenet16")
    device = benchmark_device(space, dataset, print, device="edgegpu", metric="energy_mj")
    [costs] = device.evaluate([tuple(names[2].tolist())])
    assert costs == {"energy_mj": 28.281851234436036, "latency_ms": 6.557350158691406}


def test_operations_of_fbnet() -> None:
    names = fbnet_operations([0, 8, 5, *[7] * 18, 8], "cifar100")
    assert names[:5] == [
        "ConvNorm_H32_W32_Cin3_Cout16_kernel3_stride1_group1",
        "ConvBlock_H32_W32_Cin16_Cout16_exp1_kernel3_stride1_group1",
        "Skip_H32_W32_Cin16_Cout24_stride1",
        "ConvBlock_H32_W32_Cin24_Cout24_exp1_kernel5_stride1_group2",
        "ConvBlock_H32_W32_Cin24_Cout24_exp6_kernel5_stride1_group1",
    ]
    assert names[6] == "ConvBlock_H32_W32_Cin24_Cout32_exp6_kernel5_stride2_group1"
    assert names[-4:] == [
        "Skip_H4_W4_Cin184_Cout352_stride1",
        "ConvNorm_H4_W4_Cin352_Cout1504_kernel1_stride1_group1",
        "AvgP_H4_W4_Cin1504_Cout1504_kernel4_stride1",
        "FC_Cin1504_Cout100",
    ]
    names = fbnet_operations([2] * 22, "ImageNet")
    assert len(names) == 26
    assert names[0] == "ConvNorm_H224_W224_Cin3_Cout16_kernel3_stride2_group1"
    assert names[2] == "ConvBlock_H112_W112_Cin16_Cout24_exp3_kernel3_stride2_group1"
    assert names[-2] == "AvgP_H7_W7_Cin1984_Cout1984_kernel7_stride1"
    with pytest.raises(ValueError, match="'cifar10' is not one of cifar100, ImageNet"):
        fbnet_operations([0] * 22, "cifar10")
    with pytest.raises(ValueError, match=r"is not 22 operations 0\.\.8"):
        fbnet_operations([0] * 21 + [9], "cifar100")


def cifar10(content: dict[str, Any]) -> dict[str, Any]:
    return content["nasbench201"]["cifar10"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("fbnet"), "has no 'fbnet'"),
        (lambda c: c["nasbench201"].pop("cifar100"), "['nasbench201'] has no 'cifar100'"),
        (lambda c: cifar10(c).pop("fpga_energy"), "['nasbench201']['cifar10'] has no 'fpga_energy'"),
        (lambda c: cifar10(c).update(config=7), "['config'] is no list"),
        (lambda c: cifar10(c).update(config=cifar10(c)["config"][:-1]), "15,624 architectures, not 15,625"),
        (
            lambda c: cifar10(c).update(config=[cifar10(c)["config"][1], *cifar10(c)["config"][1:]]),
            "names an architecture twice",
        ),
        (lambda c: cifar10(c).update(config=cifar10(c)["config"][::-1]), "lists other architectures"),
        (
            lambda c: cifar10(c).update(raspi4_latency=cifar10(c)["raspi4_latency"][1:]),
            "['raspi4_latency'] has 15,624 values, not 15,625",
        ),
        (
            lambda c: cifar10(c).update(raspi4_latency=[*cifar10(c)["raspi4_latency"][:-1], -2.0]),
            "['raspi4_latency'] is -2.0 in entry 15624; costs are not negative (-1: not supported)",
        ),
        (
            lambda c: cifar10(c).update(raspi4_latency=[*cifar10(c)["raspi4_latency"][:-1], float("nan")]),
            "['raspi4_latency'] is nan in entry 15624",
        ),
        (
            lambda c: cifar10(c).update(raspi4_latency=["fast"] * SIZE),
            "['raspi4_latency'] has an entry that is no number",
        ),
        (
            lambda c: cifar10(c).update(fpga_latency=[1.0] * SIZE),
            "cifar10_fpga_latency_ms of cell 0 is 1.0, not 2.57296",
        ),
        (lambda c: c["fbnet"].update(fpga_latency={}), "['fbnet']['fpga_latency'] is no dictionary"),
        (
            lambda c: c["fbnet"]["fpga_latency"].pop("FC_Cin1504_Cout100"),
            "fpga_latency_ms has no FC_Cin1504_Cout100",
        ),
    ],
)
def test_bad_costs(
    change: Any,
    message: str,
    copied: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change(copied)
    file, to = tmp_path / "x.pickle", tmp_path / "to"
    file.write_bytes(pickle.dumps(copied, 4))
    assert message in refused(capsys, "hwnasbench", f"source={file}", f"to={to}")
    assert not to.exists()


def test_other_files_than_hwnasbench(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, to = tmp_path / "x.pickle", tmp_path / "to"

    def refuses(content: bytes) -> str:
        file.write_bytes(content)
        return refused(capsys, "hwnasbench", f"source={file}", f"to={to}")

    assert "x.pickle has no 'nasbench201'" in refuses((sample / "000011.pickle.pbz2").read_bytes())
    assert "x.pickle is not a readable pickle" in refuses(b"")
    assert "x.pickle is not a readable pickle" in refuses(b"version https://git-lfs.github.com/spec/v1\n")
    assert "x.pickle is no dictionary with 'nasbench201'" in refuses(pickle.dumps([1]))
    mark = tmp_path / "ran"
    assert "holds posix.system, which is not read" in refuses(pickle.dumps(Calls(os.system, f"touch {mark}")))
    assert not mark.exists()
    assert not to.exists()


# Tables and the command


def test_a_table_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "x.npz"
    write_table(file, {"a": np.arange(3)})
    before = file.read_bytes()

    def fails(stream: Any, **arrays: Any) -> None:
        stream.write(b"half")
        raise OSError(28, "No space left on device", "x.npz")

    monkeypatch.setattr(np, "savez_compressed", fails)
    with pytest.raises(OSError, match="No space left"):
        write_table(file, {"a": np.arange(4)})
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]
    err = refused(capsys, "nasbench201", f"to={file}")
    assert err.endswith("x.npz: Not a directory")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    err = refused(capsys, "hwnasbench", f"to={tmp_path / 'a' / 'b'}")
    assert err.endswith(f"{tmp_path}: tables cannot be written here (to=<another folder>)")


def test_verify(
    table_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(["verify", "nasbench201"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith(f"{table_path}: good, 15,625 of 15,625 architectures, cifar10, cifar100")
    assert "best test accuracy 94.37, 73.51" in out[0]
    assert out[0].endswith("341 without a path at 10.00")
    assert out[1] == f"  sha256 {hashlib.sha256(table_path.read_bytes()).hexdigest()}"
    assert "arch_ops 15625x6" in out[2]

    monkeypatch.setenv("HWNAS_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert "no tables in" in refused(capsys, "verify")
    assert "no table that is known; did you mean nasbench201" in refused(capsys, "verify", "nasbench-201")
    assert "file 'nasbench201.npz' not found; looked for" in refused(capsys, "verify", "nasbench201")
    file, whole = tmp_path / "nasbench201.npz", table_path.read_bytes()
    for length in (0, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        assert "nasbench201.npz is not a readable .npz file" in refused(capsys, "verify")
    middle = len(whole) // 2
    file.write_bytes(whole[:middle] + bytes(64) + whole[middle + 64 :])
    assert "nasbench201.npz is not a readable .npz file" in refused(capsys, "verify", "nasbench201")
    np.savez(file, arch_ops=np.array([{}], dtype=object))
    assert "nasbench201.npz is not a readable .npz file" in refused(capsys, "verify", "nasbench201")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("ops"), "ops is missing"),
        (lambda t: t.pop("cifar10_test_200"), "cifar10_test_200 is missing"),
        (lambda t: t.update(ops=t["ops"][::-1]), "ops are ['avg_pool_3x3'"),
        (lambda t: t.update(arch_ops=t["arch_ops"][1:]), "arch_ops is int8 (15624, 6)"),
        (lambda t: t["arch_ops"].__setitem__(0, 9), "arch_ops does not hold every architecture once"),
        (lambda t: t.update(arch_str=t["arch_str"][::-1]), "arch_str and arch_ops are not the same"),
        (
            lambda t: t.update({key: t[key][::-1] for key in t if key != "ops"}),
            "its architectures are not in the benchmark's official order",
        ),
        (lambda t: t["cifar10_test_200"].__setitem__(0, 101.5), "cifar10_test_200 is out of range"),
        (lambda t: t["cifar10_test_12"].__setitem__(0, np.nan), "columns cover 15624 or 15625 architectures"),
        (
            lambda t: t["cifar10_test_200"].__setitem__(0, 95.0),
            "the best cifar10_test_200 is 95.00, not 94.37",
        ),
        (lambda t: t["cifar10_test_200"].__setitem__(0, 10.0), "342 cells have 10.00 % on CIFAR-10"),
        (lambda t: t.update(imagenet16_test_200=np.zeros(SIZE)), "imagenet16_valid_200 is missing"),
    ],
)
def test_tables_that_are_not_right(change: Any, message: str, table_path: Path) -> None:
    table = read_table(table_path)
    change(table)
    with pytest.raises(ValueError, match=re.escape(message)):
        TABLES["nasbench201.npz"].check(table)


def test_images_and_layers_are_checked(tmp_path: Path) -> None:
    images = {
        "x_train": np.zeros((4, 8, 8, 3), np.uint8),
        "y_train": np.zeros(4, np.int64),
        "x_test": np.zeros((2, 8, 8, 3), np.uint8),
        "y_test": np.zeros(2, np.int64),
    }
    assert TABLES["mnist.npz"].check(images) == "4 and 2 images of 8x8"
    with pytest.raises(ValueError, match="x_test is uint8"):
        TABLES["mnist.npz"].check({**images, "y_test": np.zeros(3)})
    layers = {
        "ops": np.array(FBNET_OPS),
        "pixel3_delta_ms": np.zeros((22, 9)),
        "pixel3_allskip_ms": np.zeros(()),
    }
    assert TABLES["fbnet_cifar100_latency_lut.npz"].check(layers) == "22 layers, pixel3"
    with pytest.raises(ValueError, match="pixel3_delta_ms has shape"):
        TABLES["fbnet_cifar100_latency_lut.npz"].check({**layers, "pixel3_delta_ms": np.zeros((21, 9))})


def test_list_path_and_usage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HWNAS_DATA", str(tmp_path / "none"))
    assert command(["path"]) == 0
    assert capsys.readouterr() == (f"{tmp_path / 'none'}\n", "")
    assert command(["list"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{tmp_path / 'none'} (missing)\n")
    assert re.search(r"nasbench201.npz +missing .*NATS-Bench \(MIT\); hwnas data nasbench201 source=", out)
    assert re.search(r"NATS-tss-v1_0-3ffb9-simple.tar +missing  1.1 GB; sha256; .*\(MIT\)", out)
    assert "size not published; no public checksum" in out
    monkeypatch.setenv("HWNAS_DATA", str(tmp_path))
    (tmp_path / "mnist.npz").write_bytes(bytes(2500))
    assert command(["list"]) == 0
    assert re.search(r"mnist.npz +2.5 kB  60,000 digits; LeCun 1998\n", capsys.readouterr().out)
    assert not (tmp_path / "none").exists()

    for arguments, message in {
        ("lits",): "unknown command 'lits'; did you mean splits or list",
        ("list", "all"): "unknown setting 'all'",
        ("path", "to=x"): "unknown setting 'to=x'",
        ("verify", "a", "b"): "verify takes one table, not 2",
        ("nasbench201", "sorce=x"): "unknown setting 'sorce=x'; did you mean source=",
        ("nasbench201", "source"): "unknown setting 'source'; did you mean source=",
        ("nasbench201", "source=a", "source=b"): "source is given twice",
        ("nasbench201", "source="): "source= is empty",
        ("hwnasbench", "partial=true"): "unknown setting 'partial=true'",
        ("hwnasbench", "source=x", "download"): "download and source= exclude each other",
    }.items():
        assert message in refused(capsys, *arguments, code=2)
    assert command([]) == 2
    assert capsys.readouterr().out.startswith("usage: hwnas data")
    assert command(["nasbench201", "--help"]) == 0


def test_the_command_as_users_run_it(run_hwnas: Callable[..., Any], tmp_path: Path) -> None:
    env = {"HWNAS_DATA": str(tmp_path)}
    assert run_hwnas("data", "path", env=env).stdout == f"{tmp_path}\n"
    done = run_hwnas("data", "hwnasbench", env=env, code=1)
    assert done.stdout == ""
    assert re.fullmatch(
        r"hwnas data: error: HW-NAS-Bench-v1_0.pickle \(size not published\) is not in .*; get it from "
        r"https://github.com/GATECH-EIC/.* and give it by hand: hwnas data hwnasbench source=<file>, .*\n",
        done.stderr,
    )
    run_hwnas("data", "bogus", env=env, code=2)
