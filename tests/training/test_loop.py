"""The loop against a plain one, its order, and that a stop costs nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from purify_cli.data.encode import Encoded, collate, shuffled
from purify_cli.errors import Interrupted, PurifyError, UsageError
from purify_cli.run import Run
from purify_cli.training import loop
from purify_cli.training.loop import fit
from purify_cli.training.losses import cross_entropy, squared_error
from purify_cli.training.recipe import Recipe
from tiny import build


def texts(rows: int = 10, seed: int = 0) -> Encoded:
    """Random ids of several lengths; the label is readable from the second token."""
    generator = torch.Generator().manual_seed(seed)
    ids, labels = [], []
    for row in range(rows):
        length = int(torch.randint(4, 9, (1,), generator=generator))
        words = torch.randint(100, 150, (length,), generator=generator).tolist()
        labels.append(row % 2)
        ids.append((2, 90 + row % 2, *words, 3))
    return Encoded(tuple(ids), tuple((0,) * len(row) for row in ids), tuple(labels))


def model(seed: int = 0, **settings: Any) -> nn.Module:
    return build("bert", seed=seed, **settings)


def weights(trained: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in trained.state_dict().items()}


def same(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


RECIPE = Recipe(learning_rate=1e-3, epochs=2, batch_size=4)
STEPS = 6  # ceil(10 / 4) * 2


def test_learns_and_reports_each_epoch() -> None:
    trained = fit(model(), {"train": texts(40)}, replace(RECIPE, epochs=8), Run())
    assert len(trained.losses) == 8
    assert trained.steps == 80
    assert trained.losses[-1] < 0.5 * trained.losses[0]
    assert not trained.model.training


def test_equals_a_plain_loop_without_dropout() -> None:
    settings = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    encoded = texts()
    ours = weights(
        fit(model(**settings), {"train": encoded}, replace(RECIPE, weight_decay=0.1, warmup=0.4), Run()).model
    )

    plain = model(**settings)
    plain.train()
    matrices = [p for p in plain.parameters() if p.ndim >= 2]
    vectors = [p for p in plain.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}], lr=1e-3, fused=True
    )
    step = 0
    for epoch in range(2):
        for indices in shuffled(encoded, 4, 0, epoch):
            # Rises over the first 2 of 6 steps, then falls to zero.
            factor = step / 2 if step < 2 else (STEPS - step) / (STEPS - 2)
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * factor
            batch = collate(encoded, indices, 0)
            labels = batch.pop("labels")
            optimizer.zero_grad()
            nn.functional.cross_entropy(plain(**batch).logits, labels).backward()
            nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
            optimizer.step()
            step += 1
    for name, tensor in weights(plain).items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-6)


def test_same_seed_same_bytes_and_another_seed_others() -> None:
    first, again, other = (
        weights(fit(model(), {"train": texts()}, RECIPE, Run(seed=seed)).model) for seed in (1, 1, 2)
    )
    assert same(first, again)
    assert not same(first, other)


def test_leaves_the_callers_randomness_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit(model(), {"train": texts()}, RECIPE, Run())
    assert torch.equal(torch.rand(3), expected)


def test_two_objectives_without_combine_follow_the_sum() -> None:
    streams = {"task": texts(10, 0), "other": texts(6, 1)}
    objectives = {"task": cross_entropy, "other": cross_entropy}

    def add(gradients: Mapping[str, Mapping[str, Tensor]], step: int) -> dict[str, Tensor]:
        assert list(gradients) == ["task", "other"]
        return {name: gradients["task"][name] + gradients["other"][name] for name in gradients["task"]}

    plain = fit(model(), streams, replace(RECIPE, objectives=objectives), Run()).model
    combined = fit(model(), streams, replace(RECIPE, objectives=objectives, combine=add), Run()).model
    for name, tensor in weights(plain).items():
        # Adam divides a gradient that is nearly zero by its own size, so rounding shows more than in a plain sum.
        torch.testing.assert_close(weights(combined)[name], tensor, rtol=0, atol=2e-4)


def test_a_shorter_stream_starts_again_and_the_first_sets_the_epoch() -> None:
    seen: dict[str, list[int]] = {"task": [], "other": []}

    def watch(name: str) -> Any:
        def objective(trained: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
            seen[name].append(len(batch["labels"]))
            return cross_entropy(trained, batch)

        return objective

    recipe = replace(RECIPE, objectives={"task": watch("task"), "other": watch("other")})
    trained = fit(model(), {"task": texts(10), "other": texts(5, 1)}, recipe, Run())
    assert trained.steps == STEPS
    assert sum(seen["task"]) == 20
    assert sum(seen["other"]) == 15  # three times through, two batches each


def test_one_objective_may_read_two_streams_at_once() -> None:
    """The sum of two losses within one objective is the sum of two objectives."""
    seen: list[tuple[int, int]] = []

    def both(trained: nn.Module, batches: Mapping[str, Mapping[str, Tensor]]) -> Tensor:
        assert list(batches) == ["task", "other"]
        seen.append((len(batches["task"]["labels"]), len(batches["other"]["labels"])))
        return cross_entropy(trained, batches["task"]) + cross_entropy(trained, batches["other"])

    streams = {"task": texts(10, 0), "other": texts(6, 1)}
    apart = replace(RECIPE, objectives={"task": cross_entropy, "other": cross_entropy})
    together = replace(RECIPE, objectives={"both": both}, together={"both": ("task", "other")})
    one, two = (weights(fit(model(), streams, recipe, Run()).model) for recipe in (together, apart))
    assert len(seen) == STEPS  # the first stream sets the epoch
    assert sum(first for first, _ in seen) == 20
    for name, tensor in two.items():
        torch.testing.assert_close(one[name], tensor, rtol=0, atol=2e-4)


def test_the_order_of_a_step() -> None:
    subject = model()
    order: list[str] = []

    def objective(trained: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        order.append("objective")
        return 1e3 * cross_entropy(trained, batch)

    def combine(gradients: Mapping[str, Mapping[str, Tensor]], step: int) -> Mapping[str, Tensor]:
        order.append(f"combine {step}")
        return gradients["task"]

    def project(trained: nn.Module, step: int) -> None:
        order.append(f"project {step}")
        moved = torch.cat([(p - b).flatten() for p, b in zip(trained.parameters(), before, strict=True)])
        # Clipped before the step: plain SGD of rate 0.5 moves by 0.5 at most, and it had moved when project was called.
        assert 0.49 < float(moved.norm()) < 0.51

    before = [p.detach().clone() for p in subject.parameters()]
    recipe = Recipe(
        objectives={"task": objective},
        combine=combine,
        project=project,
        optimizer="sgd",
        learning_rate=0.5,
        schedule="constant",
        epochs=1,
        batch_size=10,
    )
    fit(subject, {"train": texts()}, recipe, Run())
    assert order == ["objective", "combine 0", "project 0"]


def test_an_objective_may_differentiate_inside() -> None:
    def penalised(trained: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        loss = cross_entropy(trained, batch)
        weight = trained.get_submodule("classifier").weight
        (gradient,) = torch.autograd.grad(loss, [weight], create_graph=True)
        return loss + gradient.square().sum()

    recipe = replace(RECIPE, objectives={"task": penalised})
    assert not same(
        weights(fit(model(), {"train": texts()}, recipe, Run()).model),
        weights(fit(model(), {"train": texts()}, RECIPE, Run()).model),
    )


def test_only_the_trainable_moves() -> None:
    subject = model()
    before = weights(subject)
    fit(subject, {"train": texts()}, replace(RECIPE, trainable=lambda name, _: name.startswith("classifier")), Run())
    moved = {name for name, tensor in weights(subject).items() if not torch.equal(tensor, before[name])}
    assert moved == {"classifier.weight", "classifier.bias"}
    assert all(parameter.requires_grad and parameter.grad is None for parameter in subject.parameters())


def test_half_precision_comes_back_and_still_learns() -> None:
    subject = model().to(torch.bfloat16)
    before = weights(subject)
    recipe = replace(RECIPE, learning_rate=1e-5, epochs=20, trainable=lambda name, _: "classifier" in name)
    fit(subject, {"train": texts()}, recipe, Run())
    after = weights(subject)
    assert {tensor.dtype for tensor in after.values() if tensor.is_floating_point()} == {torch.bfloat16}
    assert [name for name in after if not torch.equal(before[name], after[name])]
    assert same(*({n: t for n, t in w.items() if "classifier" not in n} for w in (before, after)))


def test_squared_error() -> None:
    class Scores(nn.Module):
        def forward(self, input_ids: Tensor) -> Any:
            return type("Output", (), {"logits": torch.tensor([[1.0], [4.0]])})

    assert float(squared_error(Scores(), {"input_ids": torch.zeros(2, 1), "labels": torch.tensor([0.0, 2.0])})) == 2.5


class Remembering:
    """A combine with memory: the running sum of the gradients."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def __call__(self, gradients: Mapping[str, Mapping[str, Tensor]], step: int) -> Mapping[str, Tensor]:
        for name, gradient in gradients["task"].items():
            self.sums[name] = self.sums[name] + gradient if name in self.sums else gradient
        return dict(self.sums)

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.sums)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.sums = dict(state)


def stop_at(step: int, stop: Any) -> Any:
    def progress(stage: str, done: int, total: int) -> None:
        assert (stage, total) == ("training", STEPS)
        if done == step:
            stop()

    return progress


def raise_interrupt() -> None:
    raise KeyboardInterrupt


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("stop", [raise_interrupt, press_ctrl_c])
@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_resumed_training_ends_with_the_same_bytes(tmp_path: Path, step: int, stop: Any) -> None:
    whole = fit(model(), {"train": texts()}, replace(RECIPE, combine=Remembering()), Run(seed=3))

    state = tmp_path / "state"
    run = Run(seed=3, state=state, progress=stop_at(step, stop))
    with pytest.raises(Interrupted, match=r"[1-6] of 6 training steps are kept in .*run the same command again"):
        fit(model(), {"train": texts()}, replace(RECIPE, combine=Remembering()), run)
    assert [path.stat().st_mode & 0o777 for path in state.iterdir()] == [0o600]

    steps: list[int] = []
    watched = replace(run, progress=lambda stage, done, total: steps.append(done))
    resumed = fit(model(), {"train": texts()}, replace(RECIPE, combine=Remembering()), watched)
    assert steps[0] >= step  # not from the beginning
    assert same(weights(whole.model), weights(resumed.model))
    assert resumed.losses == whole.losses
    assert resumed.steps == STEPS
    assert not state.exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_within_a_step_waits_for_its_end(tmp_path: Path) -> None:
    calls = 0

    def pressed(trained: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            press_ctrl_c()
        return cross_entropy(trained, batch)

    with pytest.raises(Interrupted, match="2 of 6"):
        fit(model(), {"train": texts()}, replace(RECIPE, objectives={"task": pressed}), Run(state=tmp_path / "state"))


def test_a_step_cut_in_two_is_not_kept(tmp_path: Path) -> None:
    def cut(trained: nn.Module, step: int) -> None:
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="nothing"):
        fit(model(), {"train": texts()}, replace(RECIPE, project=cut), Run(state=tmp_path / "state"))
    assert not (tmp_path / "state").exists()


def test_without_a_state_folder_nothing_is_kept() -> None:
    with pytest.raises(Interrupted, match="nothing was kept"):
        fit(model(), {"train": texts()}, RECIPE, Run(progress=stop_at(2, raise_interrupt)))


@pytest.mark.parametrize("change", ["recipe", "identity", "seed", "texts", "weights", "garbage"])
def test_anothers_state_is_not_taken_up(tmp_path: Path, change: str) -> None:
    run = Run(seed=3, state=tmp_path, progress=stop_at(4, raise_interrupt))
    with pytest.raises(Interrupted):
        fit(model(), {"train": texts()}, RECIPE, run)
    if change == "garbage":
        for path in tmp_path.iterdir():
            path.write_bytes(path.read_bytes()[:100])
    steps: list[int] = []
    fit(
        model(seed=int(change == "weights")),
        {"train": texts(seed=int(change == "texts"))},
        replace(
            RECIPE,
            learning_rate=2e-3 if change == "recipe" else 1e-3,
            identity="another" if change == "identity" else "",
        ),
        replace(run, seed=4 if change == "seed" else 3, progress=lambda stage, done, total: steps.append(done)),
    )
    assert steps[0] == 0


def test_a_long_training_keeps_now_and_then_and_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "SECONDS_BETWEEN_SAVES", -1.0)
    seen: list[int] = []
    run = Run(state=tmp_path, progress=lambda stage, done, total: seen.append(len(list(tmp_path.iterdir()))))
    first = fit(model(), {"train": texts()}, RECIPE, run)
    assert seen == [0, 0, 1, 1, 1, 1, 1]
    steps: list[int] = []
    again = fit(
        model(), {"train": texts()}, RECIPE, replace(run, progress=lambda stage, done, total: steps.append(done))
    )
    assert steps == [STEPS]
    assert same(weights(first.model), weights(again.model))
    assert again.losses == first.losses


def test_a_full_disk_does_not_stop_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(loop, "SECONDS_BETWEEN_SAVES", -1.0)
    monkeypatch.setattr(loop, "keep", full)
    assert fit(model(), {"train": texts()}, RECIPE, Run(state=tmp_path)).steps == STEPS
    with pytest.raises(Interrupted, match="No space left on device"):
        fit(model(), {"train": texts()}, RECIPE, Run(state=tmp_path, progress=stop_at(4, raise_interrupt)))


def test_a_loss_that_is_no_number() -> None:
    def lost(trained: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        return cross_entropy(trained, batch) * float("nan")

    with pytest.raises(PurifyError, match="became nan at step 1 of 6") as caught:
        fit(model(), {"train": texts()}, replace(RECIPE, objectives={"task": lost}), Run())
    assert "learning_rate" in caught.value.remedy


def test_a_gradient_that_is_no_number() -> None:
    def root(trained: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        return cross_entropy(trained, batch) + torch.sqrt(trained.get_submodule("classifier").bias.sum() * 0)

    with pytest.raises(PurifyError, match="gradient's norm became"):
        fit(model(), {"train": texts()}, replace(RECIPE, objectives={"task": root}), Run())


def test_wrong_streams() -> None:
    recipe = replace(RECIPE, objectives={"task": cross_entropy, "poison": cross_entropy})
    with pytest.raises(UsageError, match="none is named 'poison'"):
        fit(model(), {"task": texts(), "clean": texts()}, recipe, Run())
    with pytest.raises(UsageError, match="holds no text"):
        fit(model(), {"task": Encoded((), None, ())}, RECIPE, Run())
    with pytest.raises(UsageError, match="no parameter"):
        fit(model(), {"task": texts()}, replace(RECIPE, trainable=lambda name, parameter: False), Run())


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"batch_size": 0},
        {"warmup": 1.0},
        {"clip": 0.0},
        {"betas": (0.9, 1.0)},
        {"optimizer": "adam"},
        {"schedule": "cosine"},
        {"objectives": {}},
        {"weight_decay": -1.0},
    ],
)
def test_a_recipe_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Recipe(**wrong)
