"""Runs that go on beyond their length: where that may be, and what it does."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ncp_jax.errors import InputError
from ncp_jax.experiment.setup.run_files import CURES, EXTENDED, read_json
from ncp_jax.training import kl_schedule, optimizers
from ncp_jax.training.checkpoint_records import values_of


def earlier(folder: Path) -> list[dict[str, Any]]:
    """Returns the lengths that a stage had before, the first one first.

    Args:
      folder: of the stage.

    Returns:
      Of each its `num_steps`, and the `fingerprint` of the settings of that time, which
      checkpoints of it are saved with.

    Raises:
      InputError: the record is damaged.
    """
    found = (read_json(folder, EXTENDED) or {"lengths": []}).get("lengths")
    if not isinstance(found, list) or not all(map(_is_length, found)):
        raise InputError(f"{folder / EXTENDED} is not one of ours: {CURES[EXTENDED]}")
    return found


def is_outdated(run: Path, vae_digest: str) -> bool:
    """Whether stage 2 was trained on what stage 1 was before it became longer.

    Args:
      run: its folder.
      vae_digest: `fingerprint` of the variables that stage 1 has now.
    """
    trained_on = values_of(run / "ncp" / "checkpoints", "vae")
    return bool(earlier(run / "vae") and trained_on and vae_digest not in trained_on)


def is_given(folder: Path) -> bool:
    """Whether the weights of a stage came from a file, so that none can go on there.

    Args:
      folder: of the stage.
    """
    names = ("vae.checkpoint", "vae.pretrained")
    return any(values_of(folder / "checkpoints", n) - {None} for n in names)


def stages_of(
    changes: Mapping[str, tuple[Any, Any]],
    now: Mapping[str, Any],
    may_extend: Collection[str],
    may_return: Mapping[str, Collection[int]],
) -> list[str]:
    """Returns the stages of another length; none if anything else is changed, too.

    A stage may become longer, or go back to a length that it has not gone beyond.

    Args:
      changes: (before, now) of the settings that differ, by name.
      now: the new config.
      may_extend: stages that may be of another length.
      may_return: lengths that they may go back to.
    """
    is_taken = now["vae"].get("workdir") or now["vae"].get("pretrained")
    fixed = {"vae"} if is_taken else set()  # stage 1 is that of another run
    longer = {f"{stage}.num_steps": stage for stage in {*may_extend} - fixed}
    for name, (before, after) in changes.items():
        if name not in longer or not (type(before) is type(after) is int):
            return []
        is_allowed = after > before or after in may_return.get(longer[name], ())
        if not is_allowed or now["vae"].get("checkpoint"):  # which nobody trained here
            return []
    return [longer[name] for name in changes]


def effect(
    stage: str, before: Mapping[str, Any], now: Mapping[str, Any], step: int
) -> str:
    """Says what another length does from a step on; "" where that is nothing.

    Args:
      stage: "vae" or "ncp".
      before: its section of the config before.
      now: its section now.
      step: updates done.
    """
    said = []
    if now["schedule"] == "cosine":
        rates = [_rate(section, step) for section in (before, now)]
        end = _rate(now, now["num_steps"])
        said.append(
            f"the learning rate goes from {rates[0]:.3g} to {rates[1]:.3g} at step "
            f"{step:,}, and to {end:.3g} by step {now['num_steps']:,}"
        )
    if stage == "vae" and now["kl_warmup_fraction"]:
        weights = [_kl_weight(section, step) for section in (before, now)]
        said.append(
            f"the weight of the KL goes from {weights[0]:.3g} to {weights[1]:.3g} at "
            f"step {step:,}, and rises as in a run of {now['num_steps']:,} steps"
        )
    return "; ".join(said)


def check(
    stages: Sequence[str],
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    steps: Mapping[str, int],
) -> None:
    """Refuses to change a schedule unasked, and says what an extension does.

    Args:
      stages: from `stages_of`.
      before: the config before.
      now: the config of this call.
      steps: updates done, by stage.

    Raises:
      InputError: a stage's schedule follows its length, and `extend` is not given.
    """
    for stage in stages:
        lengths = [config[stage]["num_steps"] for config in (before, now)]
        said = effect(stage, before[stage], now[stage], steps[stage])
        if said and not now[stage].get("extend"):
            raise InputError(
                f"config.{stage}.num_steps: {lengths[0]} -> {lengths[1]} changes a "
                f"schedule that the steps so far were made under: {said}. "
                f"--config.{stage}.extend=true goes on so; or give the old value, or "
                "another --workdir"
            )
        print(
            f"{stage}: of {lengths[1]:,} steps in the place of {lengths[0]:,}"
            + (f"; {said}" if said else ", under the same schedule")
        )


def _is_length(item: Any) -> bool:
    return (
        isinstance(item, dict)
        and isinstance(item.get("num_steps"), int)
        and isinstance(item.get("fingerprint"), str)
    )


def _rate(section: Mapping[str, Any], step: int) -> float:
    schedule = optimizers.schedule(
        section["schedule"],
        section["learning_rate"],
        section["num_steps"],
        section["warmup_steps"],
        section["final_learning_rate"],
    )
    return float(schedule(step))


def _kl_weight(section: Mapping[str, Any], step: int) -> float:
    return float(
        kl_schedule.kl_coefficient(
            step,
            section["num_steps"],
            section["kl_warmup_fraction"],
            section["kl_constant_fraction"],
        )
    )
