"""Traces from Python: what is appended is read, by scalevec, h5py and xarray; killed writers; concurrent readers."""

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time

import h5py
import numpy as np
import pytest
import scalevec as sv
from scalevec import _scalevec, cli

Column = _scalevec.TraceColumn
COLUMNS = [
    Column("loss", unit="nats", per="run", type="float64"),
    Column("rms", unit="1", description="root mean square", per="site"),
    Column("scale", unit="1", per="channel"),
    Column("count", per="site", type="int64"),
]


@pytest.fixture(scope="module")
def sites(tiny_models):
    return sv.load(tiny_models["qwen3"].file).checkpoint.sites


def values(sites, step):
    """Every row is its own; NaN where the step says so."""
    channels = sum(site.width for site in sites)
    scale = np.arange(channels, dtype=np.float32) + step
    scale[step % channels] = np.nan
    return {
        "loss": 1.0 / (step + 1),
        "rms": np.full(len(sites), step, np.float32) + np.arange(len(sites), dtype=np.float32),
        "scale": scale,
        "count": np.arange(len(sites)) * 1000 + step,
    }


def check(trace, sites):
    """Every row of the trace is the one that was appended."""
    steps, columns = trace.steps, {name: trace[name] for name in trace.columns}
    for i, step in enumerate(steps):
        for name, wanted in values(sites, int(step)).items():
            np.testing.assert_array_equal(columns[name][i], wanted)
    return steps.tolist()


def write(path, sites, steps, **options):
    writer = _scalevec.TraceWriter(path, COLUMNS, sites, **options)
    for step in steps:
        assert writer.append(step, values(sites, step))
    return writer


def test_a_finished_trace_is_read_by_h5py_and_xarray(tmp_path, sites):
    import xarray

    path = tmp_path / "run.h5"
    writer = write(path, sites, range(0, 300, 3), command="scalevec train e.toml", seed=5, segment_bytes=1 << 15)
    assert writer.flush() and check(sv.open_trace(path), sites) == list(range(0, 300, 3))
    status = writer.close()
    assert (status.appended, status.kept, status.dropped, status.error) == (100, 100, 0, "")
    trace = sv.open_trace(path)
    assert trace.finished and check(trace, sites) == list(range(0, 300, 3))
    with h5py.File(path) as file:
        assert file.attrs["schema"] == 1 and file.attrs["complete"] == 1 and file.attrs["seed"] == 5
        assert file["trace/step"][:].tolist() == list(range(0, 300, 3))
        assert file["trace/scale"].attrs["units"] == "1"
        for i, site in enumerate(sites):
            assert file["sites/address"].asstr()[i] == site.address
            start = file["sites/start"][i]
            ours = trace["scale", site.address]
            assert ours.shape == (100, site.width)
            np.testing.assert_array_equal(ours, file["trace/scale"][:, start : start + site.width])
            np.testing.assert_array_equal(trace["rms", site.address], file["trace/rms"][:, i])
        scale = file["trace/scale"]
        assert scale.compression == "gzip" and scale.shuffle and scale.fletcher32
    data = xarray.open_dataset(path, group="trace")
    assert data["scale"].dims == ("step", "channel") and data["rms"].dims == ("step", "site")
    assert data["step"].values.tolist() == list(range(0, 300, 3))
    np.testing.assert_array_equal(data["loss"].sel(step=9).item(), 1.0 / 10)
    with pytest.raises(sv.AddressError, match="loss, rms, scale, count"):
        trace["scales"]
    with pytest.raises(sv.AddressError):
        trace["rms", "layers.9.attn.input_norm"]


def test_rows_are_checked_when_they_are_appended(tmp_path, sites):
    writer = _scalevec.TraceWriter(tmp_path / "run.h5", COLUMNS, sites)
    assert writer.append(0, {"loss": 2.0})  # what is not measured is NaN
    with pytest.raises(sv.InvalidError, match="entries"):
        writer.append(1, {"rms": np.zeros(1)})
    with pytest.raises(sv.AddressError):
        writer.append(1, {"nothing": 1.0})
    with pytest.raises(sv.InvalidError, match="does not come after step 0"):
        writer.append(0, {})
    assert writer.append(1, np.zeros(writer.row_bytes, np.uint8))
    with pytest.raises(sv.InvalidError, match="bytes"):
        writer.append(2, np.zeros(writer.row_bytes + 1, np.uint8))
    writer.close()
    trace = sv.open_trace(tmp_path / "run.h5")
    assert np.isnan(trace["rms"][0]).all() and (trace["rms"][1] == 0).all()
    assert trace["loss"].tolist() == [2.0, 0.0] and (trace["count"] == 0).all()


def test_merging_compresses_each_chunk_once(tmp_path, sites):
    """Rows wider than the library's cache of chunks, 1 MiB, cost 290 times more where they come one by one."""
    many = list(sites) * 100
    width, rows = sum(site.width for site in many), 400
    assert 64 * width * 4 > 1 << 20
    generator = np.random.default_rng(0)
    data = generator.standard_normal((rows, width)).astype(np.float32)
    start = time.process_time()
    with h5py.File(tmp_path / "peer.h5", "w") as file:
        file.create_dataset("x", data=data, chunks=(64, 1024), shuffle=True, compression="gzip", compression_opts=1)
    peer = time.process_time() - start
    writer = _scalevec.TraceWriter(
        tmp_path / "run.h5", [Column("x", per="channel")], many, ring_bytes=1 << 28, segment_bytes=7 * 4 * width
    )
    for step in range(rows):
        assert writer.append(step, {"x": data[step]})
    writer.close(merge=False)
    start = time.process_time()
    sv.merge_trace(tmp_path / "run.h5")
    ours = time.process_time() - start
    np.testing.assert_array_equal(sv.open_trace(tmp_path / "run.h5")["x"], data)
    # Reading, checking and reading back are dearer than compressing once, and far from compressing 64 times.
    assert ours < 6 * peer, (ours, peer)


WRITER = """
    import sys
    import numpy as np
    import scalevec as sv
    from scalevec import _scalevec
    sys.path.insert(0, {tests!r})
    from test_trace_file import COLUMNS, values
    sites = sv.load({model!r}).checkpoint.sites
    writer = _scalevec.TraceWriter({path!r}, COLUMNS, sites, flush_seconds=0.01, segment_bytes=1 << 16)
    step = writer.status().last_kept + 1
    print("ready", step, flush=True)
    while step < {last}:
        assert writer.append(step, values(sites, step))
        if step % 5 == 4:
            assert writer.flush()
            print("kept", step, flush=True)
        step += 1
    print(writer.close().error or "closed", flush=True)
"""


def start_writer(path, model, last):
    code = textwrap.dedent(WRITER).format(tests=os.path.dirname(__file__), model=str(model), path=str(path), last=last)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("kills", [6])
def test_a_killed_writer_loses_no_acknowledged_row(tmp_path, sites, tiny_models, kills):
    path = tmp_path / "run.h5"
    chance, known = random.Random(4), -1
    for _ in range(kills):
        process = start_writer(path, tiny_models["qwen3"].file, 10**9)
        assert process.stdout.readline().startswith("ready")
        time.sleep(chance.uniform(0.01, 0.4))
        process.send_signal(signal.SIGKILL)
        said = process.stdout.read().splitlines()
        process.wait()
        known = max([known, *(int(line.split()[1]) for line in said if line.count(" ") == 1)])
        trace = sv.open_trace(path)
        steps = check(trace, sites)
        assert steps == list(range(len(steps))) and steps[-1] >= known and not trace.gaps
    assert known > 50
    sv.merge_trace(path)
    assert check(sv.open_trace(path), sites) == steps


def test_readers_beside_a_writer_are_right_and_quick(tmp_path, sites, tiny_models):
    path = tmp_path / "run.h5"
    process = start_writer(path, tiny_models["qwen3"].file, 4000)
    assert process.stdout.readline().startswith("ready")
    views, slowest, known = 0, 0.0, 0
    while process.poll() is None:
        start = time.perf_counter()
        try:
            trace = sv.open_trace(path)
            steps = trace.steps
        except sv.InvalidError as error:  # it was finished in between
            assert "open it again" in str(error)
            continue
        slowest = max(slowest, time.perf_counter() - start)
        assert steps.tolist() == list(range(len(steps))) and len(steps) >= known
        known = len(steps)
        row = random.randrange(known) if known else None
        if row is not None:
            try:
                found = {name: trace._reader.read(name, row, 1)[0] for name in trace.columns}
            except sv.InvalidError as error:
                assert "open it again" in str(error)
                continue
            for name, wanted in values(sites, row).items():
                np.testing.assert_array_equal(found[name], wanted)
        views += 1
    assert process.stdout.read().splitlines()[-1] == "closed"
    assert views > 10 and slowest < 1.0, (views, slowest)
    assert check(sv.open_trace(path), sites) == list(range(4000))


def test_the_shell_lists_merges_and_plots(tmp_path, sites, capsys):
    path = tmp_path / "run.h5"
    write(path, sites, range(40), command="scalevec train e.toml").close(merge=False)
    assert cli.main(["trace", "list", str(path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["rows"], said["last_step"], said["finished"]) == (40, 39, False)
    assert [c["name"] for c in said["columns"]] == ["loss", "rms", "scale", "count"]
    assert cli.main(["trace", "merge", str(path)]) == 0 and path.is_file() and not (tmp_path / "run.h5.live").exists()
    assert cli.main(["trace", "list", str(path)]) == 0
    assert "40 rows, steps 0 to 39" in capsys.readouterr().out
    assert cli.main(["trace", "plot", str(path), "rms", "loss", "scale", "-o", str(tmp_path / "p.png")]) == 0
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"
    assert cli.main(["trace", "plot", str(path), "rms", "-o", str(tmp_path / "p.xyz")]) == 1
    said = capsys.readouterr().err
    assert "E_VALUE" in said and ".xyz" in said and "png" in said and len(said.splitlines()) == 1
    assert cli.main(["trace", "plot", str(path), "nothing", "-o", str(tmp_path / "q.png")]) == 2
    assert "loss, rms, scale, count" in capsys.readouterr().err
    assert cli.main(["trace", "list", str(tmp_path / "no.h5")]) == 1
    assert "there is no trace" in capsys.readouterr().err
    picture = (tmp_path / "p.png").stat().st_mtime_ns
    assert cli.main(["trace", "plot", str(path), "rms", "-o", str(tmp_path / "p.png")]) == 0  # drawn again as it grows
    assert (tmp_path / "p.png").stat().st_mtime_ns > picture
    assert cli.main(["trace", "plot", str(path), "rms", "-o", str(tmp_path / "none/p.png")]) == 1
    assert "no such folder" in capsys.readouterr().err


def test_a_folder_is_no_trace_and_its_files_are_named(tmp_path, sites, capsys):
    run = tmp_path / "run"
    run.mkdir()
    for words in (["list", run], ["merge", run], ["plot", run, "rms", "-o", tmp_path / "p.png"]):
        assert cli.main(["trace", *map(str, words)]) == 1
        assert f"'{run}' is a folder, no trace; there is none in it" in capsys.readouterr().err
    with h5py.File(run / "inputs.h5", "w"):
        pass
    write(run / "log.h5", sites, range(2)).close()
    write(run / "trace.h5", sites, range(2)).close(merge=False)
    with pytest.raises(OSError, match=r"give one of its files: '\S+/run/log\.h5', '\S+/run/trace\.h5'$"):
        sv.open_trace(run)


@pytest.mark.filterwarnings("error")
def test_a_column_that_nothing_was_measured_of_is_drawn_as_such(tmp_path, sites):
    from scalevec.trace_file import plot

    writer = _scalevec.TraceWriter(tmp_path / "run.h5", COLUMNS, sites)
    for step in range(3):
        writer.append(step, values(sites, step) | {"rms": np.full(len(sites), np.nan, np.float32)})
    writer.close()
    assert plot(sv.open_trace(tmp_path / "run.h5"), ["rms", "loss"], tmp_path / "p.svg").stat().st_size > 0
    assert "not measured in this trace" in (tmp_path / "p.svg").read_text()


def test_lines_by_role_are_medians_of_their_sites(tmp_path, sites):
    from scalevec.trace_file import by_role

    write(tmp_path / "run.h5", sites, range(5)).close()
    lines = by_role(sv.open_trace(tmp_path / "run.h5"), "scale")
    start = 0
    wanted = {}
    for site in sites:
        wanted.setdefault(site.role, []).extend(range(start, start + site.width))
        start += site.width
    assert len(wanted) > 1 and set(lines) == set(wanted)
    for role, columns in wanted.items():
        np.testing.assert_array_equal(lines[role][2], values(sites, 2)["scale"][columns])
