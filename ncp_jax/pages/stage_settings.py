"""Which settings made which number: every stage keeps its own; imports no JAX.

`config.json` holds those of the last call, which may have been refused or have failed.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from ncp_jax.nested import flatten

Settings = Mapping[str, Any]

TRAINED = ("seed", "data", "vae", "ncp")  # sections that a started run cannot change
MEASURING = ("sample", "evaluate")
SPEED = ("sample.chunk_size", "sample.memory_mib")  # change no number


def of(stage: str, config: Settings, results: Settings) -> Settings:
    """Returns the settings that a stage's numbers were made with.

    Args:
      stage: "vae", "ncp", "sample" or "evaluate".
      config: the content of `config.json`; of records that have none of the stage.
      results: the content of `results.json`.
    """
    return _recorded(stage, results) or config


def tables(config: Settings, results: Settings) -> dict[str, dict[str, Any]]:
    """What the page prints: by heading, {field: value}; a field again where it differs.

    Args:
      config: the content of `config.json`.
      results: the content of `results.json`.
    """
    recorded = {s: found for s in MEASURING if (found := _recorded(s, results))}
    if not recorded:
        return {"Configuration": dict(flatten(config))}
    shown = {name: config[name] for name in TRAINED if name in config}
    found = {"Configuration": dict(flatten(shown))}
    printed = dict(found["Configuration"])
    for stage, settings in recorded.items():
        new = {
            field: value
            for field, value in flatten(settings)
            if field not in printed or printed[field] != value
        }
        found[f"Settings of {stage}"] = new
        printed |= new
    return found


def flat(config: Settings, results: Settings) -> dict[str, Any]:
    """All settings of `tables` in one, {field: value}; a second value under its stage.

    Args:
      config: the content of `config.json`.
      results: the content of `results.json`.
    """
    found: dict[str, Any] = {}
    for heading, settings in tables(config, results).items():
        stage = heading.rpartition(" ")[2]
        for field, value in settings.items():
            found[f"{field} (in {stage})" if field in found else field] = value
    return found


def remarks(config: Settings, results: Settings) -> Iterator[str]:
    """Yields sentences where numbers, pictures and settings are not of one call.

    Args:
      config: the content of `config.json`.
      results: the content of `results.json`.
    """
    stages = results.get("run", {}).get("stages", {})
    for stage in MEASURING:
        if not (settings := _recorded(stage, results)):
            continue
        if "fingerprint" not in stages[stage]:
            yield (
                f"Stage {stage} was begun again, or one before it, and has not ended: "
                "its numbers are of the settings that are listed here as its own; its "
                f"pictures may be of others. Run --stage={stage}."
            )
        if other := _differences(settings, config, (stage,)):
            yield f"Later asked for, and not in the numbers of {stage}: {other}."
    drawn, measured = (_recorded(stage, results) for stage in MEASURING)
    if drawn and measured and (other := _differences(measured, drawn, ("sample",))):
        yield (
            f"The samples shown are not those that were measured ({other}): run "
            "--stage=evaluate."
        )
    if line := of_earlier_weights(results, "ncp", *MEASURING):
        yield line


def of_earlier_weights(results: Settings, *stages: str) -> str:
    """A sentence on what was made before a stage that it reads was trained again.

    Args:
      results: the content of `results.json`.
      *stages: that are looked at, in the order in which they run.

    Returns:
      Which to run again; "" where there are none. Stages that were begun again, and
      old records that do not name their weights, are passed over.
    """
    earlier = {stage: _retrained(results, stage) for stage in stages}
    again = [stage for stage in stages if earlier[stage]]
    if not again:
        return ""
    newer = dict.fromkeys(name for names in earlier.values() for name in names)
    return (
        f"The results of {' and '.join(again)} are of earlier weights of "
        f"{' and '.join(newer)}: run "
        f"{', then '.join(f'--stage={stage}' for stage in again)}."
    )


def _retrained(results: Settings, stage: str) -> list[str]:
    """Stages whose own records name other weights than those that `stage` read."""
    record = _part(results, "run", "stages", stage)
    if "fingerprint" not in record:
        return []
    return [
        name
        for name, weights in _part(record, "weights").items()
        if _part(results, "run", "stages", name, "weights").get(name, weights)
        != weights
    ]


def _recorded(stage: str, results: Settings) -> Settings:
    """The settings in a stage's record; empty without any."""
    return _part(results, "run", "stages", stage, "config")


def _part(content: Any, *names: str) -> Settings:
    """A section within sections; empty without any."""
    for name in names:
        content = content.get(name, {}) if isinstance(content, Mapping) else {}
    return content if isinstance(content, Mapping) else {}


def _differences(first: Settings, second: Settings, sections: tuple[str, ...]) -> str:
    """Fields of some sections that differ: value in the first -> in the second."""
    before, after = dict(flatten(first)), dict(flatten(second))
    return ", ".join(
        f"{field}: {value} -> {after[field]}"
        for field, value in before.items()
        if field.split(".")[0] in sections
        and field not in SPEED
        and field in after
        and after[field] != value
    )
