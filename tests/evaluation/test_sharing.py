"""An evaluation shared by several processes, here threads, gives what one process gives."""

import dataclasses
import threading

import numpy as np
import pytest

from fedfr_jax.data.held_out import HeldOut
from fedfr_jax.data.types import VerificationSet
from fedfr_jax.errors import InputError
from fedfr_jax.evaluation.assess import Assessor, assess_shared, curves, summarize
from fedfr_jax.evaluation.examples import hard_negative_examples, mistake_examples
from fedfr_jax.evaluation.sharing import Share, packed, unpacked
from fedfr_jax.evaluation.variants import Validation, assess_personalized, assess_variants
from fedfr_jax.settings import EvalConfig

PEOPLE, EACH, SIDE = 2, 3, 2
NUMBERS = np.array([1, 2, 3, 5, 8, 9, 11])  # of a larger population; a third process has 3 of them
CLIENTS = len(NUMBERS)
LABELS = np.repeat(np.arange(CLIENTS * PEOPLE), EACH)
RNG = np.random.default_rng(1)
FACES = RNG.integers(40, 200, (CLIENTS * PEOPLE, SIDE, SIDE, 3))


def photographs(people, rng, noise=60):
    images = FACES[people] + rng.normal(0, noise, (len(people), SIDE, SIDE, 3))
    return np.clip(images, 0, 255).astype(np.uint8)


def embed(variables, images):
    assert len(images)  # nothing is computed for nothing
    return (images.reshape(len(images), -1).astype(np.float32) - 128) @ variables["w"]


def gallery(number):
    position = int(np.flatnonzero(number == NUMBERS)[0])
    local = np.repeat(np.arange(PEOPLE), 2)
    rng = np.random.default_rng(number)
    return photographs(PEOPLE * position + local, rng), local


def pairs():
    rng = np.random.default_rng(2)
    left = rng.integers(0, len(FACES), 21)
    same = np.arange(21) % 2 == 0
    people = np.stack([left, np.where(same, left, (left + 1) % len(FACES))], 1).reshape(-1)
    return VerificationSet("pairs", photographs(people, rng), same)


def assessor(share, transform=True):
    held_out = HeldOut(
        NUMBERS,
        photographs(LABELS, np.random.default_rng(3)),
        LABELS,
        LABELS // PEOPLE,
        np.arange(0, CLIENTS * PEOPLE + 1, PEOPLE),
        np.arange(CLIENTS * PEOPLE),
    )
    return Assessor(
        EvalConfig(fars=(0.05, 0.2)),
        held_out,
        (pairs(),),
        lambda number: gallery(number)[0],
        gallery,
        lambda images: images,
        embed,
        (lambda t, features: features @ t) if transform else None,
        8,
        share,
    )


def model_of(client):
    rng = np.random.default_rng(client)
    return {"w": rng.standard_normal((12, 4)).astype(np.float32)}, rng.standard_normal((4, 4))


def everything(share):
    """All that an evaluation computes, as the process of this share has it."""
    it = assessor(share)
    looked_up = []

    def models(client):
        looked_up.append(client)
        assert client % share.processes == share.process
        return model_of(client)

    backbone = model_of(100)[0]
    validation = Validation(gallery, photographs(LABELS[::3], np.random.default_rng(4)))
    variants, chosen = assess_variants(it, models, backbone, validation=validation)
    found = {
        "global": assess_shared(it, backbone),
        "alone": assess_personalized(it, models),
        **variants,
    }
    shown = {"global": found["global"], "personalized": found["personalized"]}
    public = photographs(np.arange(9), np.random.default_rng(5))
    return (
        {name: dataclasses.asdict(a) for name, a in found.items()},
        {name: summarize(a) for name, a in found.items()},
        curves(shown),
        chosen,
        [hard_negative_examples(it, backbone, public, n) for n in (1, 4)],
        [mistake_examples(it, models, found["personalized"], n) for n in (0, 1, 4)],
    )


def in_threads(processes, work):
    """``work(share)`` of every process, which exchange through a barrier."""
    barrier, messages = threading.Barrier(processes, timeout=60), [b""] * processes
    results = [None] * processes

    def gather(process, mine):
        messages[process] = mine
        barrier.wait()
        found = list(messages)
        barrier.wait()
        return found

    def run(process):
        share = Share(process, processes, lambda mine: gather(process, mine))
        try:
            results[process] = work(share)
        except InputError as error:
            results[process] = error

    threads = [threading.Thread(target=run, args=(p,)) for p in range(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def assert_same(found, expected, where=""):
    """Equal values of equal types, except for the last bits of matrix products."""
    assert type(found) is type(expected), where
    if isinstance(expected, dict):
        assert list(found) == list(expected), where
        for key in expected:
            assert_same(found[key], expected[key], f"{where}/{key}")
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), where
        for i, pair in enumerate(zip(found, expected, strict=True)):
            assert_same(*pair, f"{where}/{i}")
    elif isinstance(expected, np.ndarray):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape), where
        if expected.dtype.kind == "U":
            assert found.tolist() == expected.tolist(), where
            return
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6, err_msg=where)
    elif isinstance(expected, float):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6, err_msg=where)
    else:
        assert found == expected, where


@pytest.mark.parametrize("processes", [2, 3, 9])  # of nine, some have no client
def test_shared_out_or_alone_the_results_are_the_same(processes):
    alone = everything(Share())
    assert alone[3] and len(alone[4][1]) == 4 and len(alone[5][2]) > 4
    for found in in_threads(processes, everything):
        assert_same(found, alone)


def test_an_error_of_one_process_is_told_to_all():
    def work(share):
        def compute():
            if share.process == 1:
                raise InputError("features are not finite")
            return {}

        return share.exchange(compute)

    for found in in_threads(3, work):
        assert isinstance(found, InputError) and str(found) == "features are not finite"


def test_arrays_come_back_as_they_were_packed():
    arrays = {
        "a/b": np.arange(6, dtype=np.int64).reshape(2, 3) << 40,
        "nothing": np.zeros((0, 4)),
        "one": np.array(1e-300),
        "flags": np.array([True, False]),
        "text": np.array(["", "own/global mean"]),
        "empty": np.array(""),
        "turned": np.arange(6.0).reshape(2, 3).T,
    }
    assert_same(unpacked(packed(arrays)), arrays)
