"""Training with chains: averages, members that are tuned, schedules that are told the loss."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import Running, rows
from safetensors.numpy import load_file
from spaces import assert_same_bits

import gpuopt
from gpuopt.training import Callback, Config, Training, UsageError, resume, train


def test_an_average_is_kept_evaluated_saved_and_gone_on_with(tmp_path: Path) -> None:
    hyperparameters: dict[str, Any] = {"weight_decay": 0.1}
    config = Config(
        hidden=(4,), epochs=12, optimizer="AdamW", hyperparameters=hyperparameters, average=0.9, device="cpu"
    )
    assert config.rule() == gpuopt.chain(gpuopt.AdamW(weight_decay=0.1), gpuopt.EMA(0.9))
    seen: list[Training] = []

    class See(Callback):
        def end(self, training: Training) -> None:
            seen.append(training)

    whole = train(config, out=tmp_path / "whole", callbacks=[See()])
    trained, evaluated = seen[0].optimizer.params, seen[0].optimizer.evaluation()
    assert not np.array_equal(trained["layers"][0]["w"], evaluated["layers"][0]["w"])
    _, y = next(seen[0]._learner._train.blocks(10**6))
    found = seen[0].network.score(seen[0].network.outputs(evaluated, seen[0].data.train.x), y)
    assert whole.train_loss == pytest.approx(float(found[0]) / len(seen[0].data.train), rel=1e-5)
    train(dataclasses.replace(config, epochs=5), out=tmp_path / "cut")
    again = resume(tmp_path / "cut", epochs=12)
    assert (again.train_loss, again.train_accuracy) == (whole.train_loss, whole.train_accuracy)
    left, right = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "cut"))
    assert any("EMA.average" in name for name in left)
    assert_same_bits(left, right)
    written = json.loads((tmp_path / "whole" / "config.json").read_text())["config"]
    assert Config.from_json(written).rule() == config.rule()


CHAIN = gpuopt.chain(
    gpuopt.ClipValue(gpuopt.schedules.constant(1.0)), gpuopt.SGD(0.1, 0.9, nesterov=True), gpuopt.EMA(0.5)
)


def test_a_chain_goes_to_json_and_back() -> None:
    config = Config(optimizer=CHAIN)
    assert Config.from_json(json.loads(json.dumps(config.to_json()))).rule() == CHAIN
    tuned = Config(optimizer=CHAIN, hyperparameters={"EMA.decay": 0.25, "lr": "cosine"})
    assert tuned.rule(10).at(0)["EMA.decay"] == 0.25
    for wrong, words in (
        ({"optimizer": CHAIN, "hyperparameters": {"EMA.decya": 1}}, r"--set EMA.decya=1: .*did you mean EMA.decay"),
        ({"average": 1.0}, r"--average 1.0: EMA: decay: got 1.0, expected a number in \[0, 1\)"),
        ({"average": "much"}, r"--average much: EMA: decay: got 'much'"),
    ):
        with pytest.raises(UsageError, match=words):
            Config(**wrong)
    with pytest.raises(UsageError, match="Box: low: ndarray, expected a number, a flag or a schedule"):
        Config(optimizer=gpuopt.chain(gpuopt.SGD(), gpuopt.Box(np.zeros(2), 1))).to_json()


def test_a_plateau_is_told_the_loss_of_each_reported_epoch(tmp_path: Path) -> None:
    config = Config(
        hidden=(4,), epochs=10, lr=0.5, optimizer="SGD", schedule="plateau:factor=0.5,patience=1,threshold=9"
    )
    train(config, out=tmp_path / "whole")
    assert [row["lr"] for row in rows(tmp_path / "whole")] == [0.5, 0.5, 0.5, *(0.5**k for k in (2, 2, 3, 3, 4, 4, 5))]
    train(dataclasses.replace(config, epochs=4), out=tmp_path / "cut")
    resume(tmp_path / "cut", epochs=10)
    assert [row["lr"] for row in rows(tmp_path / "cut")] == [row["lr"] for row in rows(tmp_path / "whole")]


def test_members_of_a_chain_are_tuned_while_it_trains(tmp_path: Path) -> None:
    running = Running(tmp_path / "run", optimizer=CHAIN)
    try:
        now = running.ask()["now"]
        assert now["rule"] == "chain(ClipValue, SGD, EMA)"
        assert now["ranges"]["EMA.decay"] == [0, 1]
        answer = running.ask(tune={"EMA.decay": 0.25, "ClipValue.limit": 0.5, "lr": 0.2})
        assert [event["name"] for event in answer["events"]] == ["EMA.decay", "ClipValue.limit", "lr"]
        assert answer["now"]["hyperparameters"]["EMA.decay"] == 0.25
        assert "EMA: decay: got 1.0" in running.ask(tune={"EMA.decay": 1})["refused"]
        assert "(did you mean 'EMA.decay'?)" in running.ask(tune={"EMA.decya": 0.5})["refused"]
    finally:
        running.finish()
        running.client.close()
