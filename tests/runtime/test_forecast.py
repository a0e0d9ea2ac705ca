"""``--dry_run``: what is told is what a run has."""

import dataclasses
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from small import ROOT, settings
from test_paper_scale import paper_config

from fedfr_jax.data.types import ImageSource
from fedfr_jax.errors import ConfigError, InputError
from fedfr_jax.population.schedule import make_schedule
from fedfr_jax.runtime import costs, memory
from fedfr_jax.runtime.footprint import peaks
from fedfr_jax.runtime.forecast import forecast
from fedfr_jax.runtime.machine import Machine, find_machine
from fedfr_jax.runtime.remedies import Situation, excess, missing, needed, remedies
from fedfr_jax.runtime.simulation import make_spec, split_of
from fedfr_jax.runtime.stand_in import stand_in_source

HERE = Machine("cpu", "cpu", 2, 1, math.inf, 2.0**40, True, False, 0.0)


SPLIT = {
    "client_fraction": 8 / 13,
    "identities_per_client": [2, 2],
    "client_images": [10, 10],
    "verification_images": 4,
    "public_images": [7, 7],
}


def unmeasured(**changes):
    return settings(**{"engine": {"plan_seconds": 0.0, "lanes": 1, "conv": "custom"}, **changes})


def source_of(counts, size=16):
    """Labels of identities with these numbers of images; reading one is an error."""

    def read(numbers):
        raise AssertionError("a forecast read images")

    names = [str(i) for i in range(len(counts))]
    return ImageSource("labels", np.repeat(np.arange(len(counts)), counts), size, read, names)


def tiny(**changes):
    """4 clients of 2 people with 10 images each, 4 held out; 5 public people with 7."""
    base = {
        "data": {"image_size": 16, "split": SPLIT},
        "model": {"name": "spherenet", "depth": 4, "widths": [4, 4, 8, 8], "embedding": 8},
        "fed": {"num_clients": 4, "rounds": 3, "batch_size": 4, "local_epochs": [2, 1]},
        "pretrain": {"epochs": 0},
    }
    for group, values in changes.items():
        base[group] = {**base.get(group, {}), **values}
    return unmeasured(**base)


def counts_of_tiny(config):
    """Which identities are for clients depends on the seed; they get 10 images, others 7."""
    order = np.random.default_rng(np.random.SeedSequence(config.data.seed, spawn_key=(0,)))
    shuffled = order.permutation(np.arange(13))
    counts = np.full(13, 7)
    counts[shuffled[:8]] = 10
    return counts


def plan_of_tiny(machine=HERE, **changes):
    config = tiny(**changes)
    return forecast(config, machine, source=source_of(counts_of_tiny(config)))


def parts_of(plan):
    return {part.name: (part.device, part.host) for part in plan.parts}


def test_bytes_by_hand():
    plan = plan_of_tiny()
    image, d, k = 16 * 16 * 3, 8, 2
    parts = parts_of(plan)
    assert parts["public images"] == (35 * image, 0)
    assert parts["training images, all clients'"] == (4 * 2 * 6 * image, 0)
    assert parts["images on their way"] == (0, 48 * image)  # the table, after the public images
    assert parts["held-out images"][1] == 4 * 2 * 4 * image
    # A class embedding and a binary classifier of each identity, a transform with a bias, a flag.
    head = 4 * (k * d + k * d + k + d * d + d) + 1
    assert plan.units.head == head
    assert parts["heads of the cohort"] == (2 * head, 4 * head)  # two devices
    backbone = plan.units.backbone
    assert parts["previous backbones"] == (2 * backbone, 4 * backbone)
    assert parts["server's state"][0] == 2 * backbone + 4 * 5 * d + 4
    assert parts["tables of directions, per lane"][0] == 2 * (12 + 35) * 4 * d
    assert parts["which public images are hard"][0] == 2 * 35
    down = plan.wire["down"]
    assert down == {"backbone": backbone, "public class embeddings": 5 * d * 4}
    assert plan.wire["up"] == down


def test_images_and_steps_by_hand():
    plan = plan_of_tiny()
    cases = {work.name: work for work in plan.work}
    none, every = cases["no hard negatives"], cases["all public images"]
    # 12 images in mini-batches of 4: 3 steps an epoch, 2 epochs, then 1.
    assert [list(s) for s in none.steps] == [[6] * 4, [3] * 4, [3] * 4]
    assert [list(s) for s in none.images] == [[24] * 4, [12] * 4, [12] * 4]
    assert list(every.steps[0]) == [2 * (47 // 4)] * 4
    unit = costs.forward_flops(plan.config)
    assert none.flops["training"][0] == 3 * unit * 4 * 24
    assert none.flops["directions"][0] == 2 * unit * 4 * 12 * 2 * (1 - 0.5**2)
    assert none.flops["public images"][0] == unit * 35
    assert none.pace[0] == pytest.approx(sum(v[0] for v in none.flops.values()))


def test_what_a_method_does_not_have_takes_nothing():
    plan = plan_of_tiny(method={"name": "fedavg"}, population={"previous": "off"})
    names = set(parts_of(plan))
    assert not names & {
        "tables of directions, per lane",
        "which public images are hard",
        "previous backbones",
    }
    assert list(plan.wire["down"]) == ["backbone"]
    assert [work.name for work in plan.work] == [""]


def test_an_optimizer_of_the_server_is_counted():
    plain, adam = (
        plan_of_tiny(fed={"server_optimizer": name}).units.server for name in ("average", "adam")
    )
    assert adam > 2.9 * plain


def test_activations_take_the_place_of_images():
    plan = plan_of_tiny(fed={"trainable": "embedding"})
    parts, unit = parts_of(plan), plan.units.input
    assert plan.units.divided and unit == 2 * 8 * 4  # one pixel of 8 channels and its mirror's
    assert parts["activations, public images"] == (35 * unit, 0)
    assert parts["activations, training images"][0] == 48 * unit
    assert plan.units.backbone < plan.units.network


def small_machine(device, host=2.0**40):
    return dataclasses.replace(
        HERE, backend="gpu", shared=False, devices=1, device_bytes=device, host_bytes=host
    )


def situation(plan):
    return Situation(plan.config, plan.kind, plan.counts, plan.units, plan.machine)


def test_remedies_make_it_fit_with_as_little_as_possible():
    everything = needed(situation(plan_of_tiny(small_machine(2.0**40)))).device
    plan = plan_of_tiny(small_machine(0.9 * everything))
    assert excess(situation(plan))[0] > 0
    changes, after = remedies(situation(plan))
    assert changes and not any(excess(after))
    for left_out in changes:  # each is needed
        rest = situation(plan)
        for change in changes:
            if change is not left_out:
                rest = change.apply(rest)
        assert missing(rest)
    # What they promise is what a forecast with these settings finds.
    given = {"engine": {"plan_seconds": 0.0, "lanes": 1, "conv": "custom"}}
    for change in changes:
        name, value = change.text.split("=")
        group, *inner, last = name.split(".")
        node = given.setdefault(group, {})
        for part in inner:
            node = node.setdefault(part, {})
        node[last] = {"False": False}.get(value, int(value) if value.isdigit() else value)
    if "data" in given and "split" in given["data"]:
        given["data"]["split"] = {**SPLIT, **given["data"]["split"]}
    again = plan_of_tiny(small_machine(0.9 * everything), **given)
    assert not any(excess(situation(again)))


def test_nothing_helps_where_nothing_can():
    plan = plan_of_tiny(small_machine(1000.0))
    _, after = remedies(situation(plan))
    assert excess(after)[0] > 0


def test_a_machine_that_is_described():
    config = tiny()
    found = find_machine(config, device_gib=16, host_gib=12, devices=8, hosts=2)
    assert (found.devices, found.hosts, found.device_bytes) == (8, 2, 16 * 2**30)
    assert not found.shared and not found.is_here
    assert find_machine(config).shared
    with pytest.raises(InputError, match="--device_gib"):
        find_machine(config, device_gib=-1)
    with pytest.raises(InputError, match="--hosts=3"):
        find_machine(config, devices=8, hosts=3)


def test_labels_that_stand_in_for_a_data_set():
    split = {
        "client_images": [101, 109],
        "public_images": [61, 79],
        "public_identities": 60,
        "verification_images": 40,
        "identities_per_client": [10, 10],
    }
    config = unmeasured(data={"source": "recordio", "root": "no", "split": split})
    plan = forecast(config, HERE, source=stand_in_source(config))
    assert plan.counts.public_images == pytest.approx(60 * 70, rel=0.03)
    assert plan.counts.training_images == pytest.approx(3 * 10 * 65, rel=0.03)
    with pytest.raises(ConfigError, match=r"data\.split\.public_identities"):
        stand_in_source(unmeasured(data={"split": split | {"public_identities": 0}}))
    with pytest.raises(ConfigError, match=r"data\.split\.client_images"):
        stand_in_source(unmeasured(data={"split": split | {"client_images": [1, 1_000_000]}}))


def test_the_command_reads_no_images_and_prints_within_100_columns(tmp_path):
    arguments = ["--config=configs/quickstart.py", "--dry_run", "--config.engine.plan_seconds=0"]
    arguments += ["--device_gib=0.01", "--device_tflops=1", "--devices=2"]
    done = subprocess.run(
        [sys.executable, "-m", "fedfr_jax.train", *arguments],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert max(map(len, done.stdout.splitlines())) <= 100
    first = done.stdout.index("Does it fit?")
    assert first < done.stdout.index("How long?") < done.stdout.index("Memory by part")
    assert "too little" in done.stdout and "assumed: 1 TFLOP/s" in done.stdout


def test_what_would_not_fit_is_refused_before_images_are_read(monkeypatch):
    config = tiny()
    source = source_of(counts_of_tiny(config))
    split = split_of(config, source)
    schedule = make_schedule(config.population, 3, 0, split.clients, 2)
    arguments = config, source.labels, split, "resident", schedule, make_spec(config)
    memory.check_images(*arguments)
    images = (35 + 48) * 768 * 2 + 48 * 768  # on two devices, and the clients' on their way
    monkeypatch.setattr(memory, "available", lambda: float(images))
    with pytest.raises(ConfigError, match=r"^data\.images.*--dry_run"):
        memory.check_images(*arguments)


RUN = """
import sys
import numpy as np
sys.path.insert(0, {tests!r})
from test_forecast import big, source_of
from fedfr_jax.experiment import Experiment
from fedfr_jax.engine.devices import use_cpu_devices
from fedfr_jax.runtime.process_memory import peak_bytes
config, counts = big({public}, {part})
use_cpu_devices(2)
def read(numbers):
    coarse = np.random.default_rng(numbers[:1]).integers(0, 256, (len(numbers), 4, 4, 3), np.uint8)
    return coarse.repeat(4, axis=1).repeat(4, axis=2)  # hardly any is like another
import dataclasses
with Experiment(config, source=dataclasses.replace(source_of(counts), read=read)) as experiment:
    experiment.run()
print("peak", peak_bytes())
"""


def big(public, part=0):
    """4 clients, and 100 public people with so many images each, on a tiny network."""
    engine = {"plan_seconds": 0.0, "lanes": 1, "conv": "custom", "part": part}
    split = SPLIT | {"client_fraction": 0.5, "public_images": [public, public]}
    config = unmeasured(
        data={"image_size": 16, "split": split},
        model={
            "name": "spherenet",
            "depth": 4,
            "widths": [4, 4, 8, 8],
            "embedding": 128 if part else 32,
        },
        pretrain={"epochs": 0},
        fed={"num_clients": 4, "rounds": 2, "batch_size": 4, "local_epochs": [1]},
        engine=engine,
    )
    fed = dataclasses.replace(config.fed, hard_threshold=0.999999)
    order = np.random.default_rng(np.random.SeedSequence(config.data.seed, spawn_key=(0,)))
    counts = np.full(200, public)
    counts[order.permutation(np.arange(200))[:100]] = 10
    return dataclasses.replace(config, fed=fed), counts


def measured_peak(public, part=0):
    """Most memory of a process that runs it, in bytes."""
    code = RUN.format(tests=str(ROOT / "tests" / "runtime"), public=public, part=part)
    # glibc keeps what is freed below a limit that it raises by itself.
    extra = {"JAX_PLATFORMS": "cpu", "MALLOC_MMAP_THRESHOLD_": "262144", "XLA_FLAGS": ""}
    extra["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    runs = []
    for _ in range(2):  # the first one compiles, which takes memory, too
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | extra,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        runs.append(float(done.stdout.split("peak")[1]))
    return runs[-1]


def predicted_peak(public, part=0):
    config, counts = big(public, part)
    plan = forecast(config, HERE, source=source_of(counts))
    return max(host + 2 * device for device, host in peaks(plan.parts, returned=True).values())


@pytest.mark.slow
@pytest.mark.parametrize("part", [0, 1])
def test_the_peak_of_memory_is_as_told(part):
    """What Python, JAX and the programs take is measured with few public images."""
    few, many = 20, 3000
    baseline = measured_peak(few, part) - predicted_peak(few, part)
    told = predicted_peak(many, part)
    assert told > 300e6
    assert measured_peak(many, part) - baseline == pytest.approx(told, rel=0.15)


def test_parts_by_hand():
    plan = plan_of_tiny(engine={"part": 1, "plan_seconds": 0.0, "lanes": 1, "conv": "custom"})
    whole, parts = parts_of(plan_of_tiny()), parts_of(plan)
    image, d = 16 * 16 * 3, 8
    assert "public images" not in parts and parts["features of public images"] == (35 * 4 * d, 0)
    assert parts["kept public images of a part"] == (35 * image, 35 * image)  # room for all
    assert parts["tables of directions, per lane"] == whole["tables of directions, per lane"]
    assert parts["which public images are hard"][0] == 35
    assert parts["training images, all clients'"] == whole["training images, all clients'"]
    streamed = plan_of_tiny(
        engine={"part": 1, "plan_seconds": 0.0, "lanes": 1, "conv": "custom"},
        data={"images": "stream"},
    )
    own = 12 * image  # of one client on each of two devices
    assert parts_of(streamed)["training images of two parts"] == (2 * own, 4 * own)
    assert parts["previous backbones"] == (2 * plan.units.backbone, 4 * plan.units.backbone)


def test_parts_are_advised_where_they_are_enough():
    config, counts = big(3000)
    plan = forecast(config, small_machine(2.0**40), source=source_of(counts))
    everything = needed(situation(plan)).device
    small = dataclasses.replace(plan, machine=small_machine(0.3 * everything))
    [change], after = remedies(situation(small))
    assert change.text.startswith("engine.part=") and not change.changes_results
    assert not any(excess(after))
    allowed = dataclasses.replace(config.fed, aggregator="median", aggregation="uniform")
    refused = dataclasses.replace(small, config=dataclasses.replace(config, fed=allowed))
    assert not any("engine.part" in c.text for c in remedies(situation(refused))[0])
    with pytest.raises(ConfigError, match=r"engine\.part is 1, but there are 2 processes"):
        forecast(
            tiny(engine={"part": 1, "plan_seconds": 0.0}),
            dataclasses.replace(HERE, hosts=2),
            source=source_of(counts_of_tiny(tiny())),
        )


def test_the_papers_configuration_fits_a_chip_of_16_gib():
    """But for activations, which only the compiler knows: 13.9 GiB in pretraining, its peak."""
    config = paper_config()
    config = dataclasses.replace(
        config, engine=dataclasses.replace(config.engine, plan_seconds=0.0)
    )
    machine = dataclasses.replace(small_machine(16 * 2.0**30, 12 * 2.0**30), backend="tpu")
    plan = forecast(config, machine, source=stand_in_source(config))
    assert plan.counts.public_images == pytest.approx(420_671, rel=0.01)
    found = peaks(plan.parts)
    assert found["pretraining"][0] < 1 * 2**30 and found["rounds"][0] < 5 * 2**30
    assert not any(excess(situation(plan)))
    whole = dataclasses.replace(config, engine=dataclasses.replace(config.engine, part=0))
    plan = forecast(whole, machine, source=stand_in_source(whole))
    assert excess(situation(plan))[0] > 30 * 2**30
    assert remedies(situation(plan))[0][0].text.startswith("engine.part=")
