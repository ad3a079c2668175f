"""Engine metrics in our vocabulary: the text of ``/metrics`` -> ``{name of METRIC_NAMES: value}``."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from harness.engines.errors import ExpositionError
from harness.engines.metric_sources import Formula, Gauge
from harness.engines.metric_tables import OUR_PREFIX, TABLES
from harness.results.schema import METRIC_NAMES

# Families that are worth parsing.  An engine shows hundreds of histogram lines with each scrape; they are left aside
# before the parser sees them, because it costs some 10 us a line and scrapes happen while the engine is measured.
WANTED = {OUR_PREFIX + name for name in METRIC_NAMES} | {
    family
    for _, table in TABLES.values()
    for sources in table.values()
    for source in sources
    for family in source.families
}


MOST_SERIES = 20_000  # remembered; an engine that makes labels as it goes is parsed anew beyond

# What stands before the value of a line that was parsed once: the same in every scrape.
_series: dict[str, Sample] = {}


def family_of(line: str) -> str:
    """The metric name at the start of a sample line."""
    name = line.partition("{")[0].split(None, 1)
    return name[0] if name else ""


def read_families(text: str) -> dict[str, list[Sample]]:
    """Samples of the wanted families by name.  Raises ExpositionError when such a line cannot be parsed."""
    families: dict[str, list[Sample]] = defaultdict(list)
    for line in text.splitlines():
        head, _, value = line.rpartition(" ")
        known = _series.get(head)
        try:
            if known is not None:
                families[known.name].append(known._replace(value=float(value)))
            elif family_of(line) in WANTED:
                for sample in parse_line(line):
                    families[sample.name].append(sample)
                    if is_split_so(head, value, sample) and len(_series) < MOST_SERIES:
                        _series[head] = sample
        except (ValueError, IndexError, KeyError) as error:
            raise ExpositionError(f"the engine's /metrics text cannot be parsed: {error}") from None
    return families


def is_split_so(head: str, value: str, sample: Sample) -> bool:
    """Whether ``value`` is the sample's value and all the rest stands in ``head``: no timestamp, no tab before it."""
    try:
        found = float(value)
    except ValueError:
        return False
    same = found == sample.value or (math.isnan(found) and math.isnan(sample.value))
    return bool(head) and same and sample.timestamp is None


def parse_line(line: str) -> list[Sample]:
    return [sample for family in text_string_to_metric_families(line + "\n") for sample in family.samples]


@lru_cache(maxsize=64)
def sources_in(families: frozenset[str]) -> tuple[tuple[str, tuple[Gauge | Formula, ...]], ...]:
    """For every name of the vocabulary the sources that ``families`` can feed: ours, then table after table."""
    ours = {name: (Gauge(OUR_PREFIX + name),) for name in METRIC_NAMES}
    found = []
    for table in (ours, *(table for _, table in TABLES.values())):
        for name, sources in table.items():
            fed = tuple(source for source in sources if families.issuperset(source.families))
            if fed:
                found.append((name, fed))
    return tuple(found)


def parse_exposition(text: str) -> dict[str, float]:
    """Values by name of METRIC_NAMES.  A metric that the engine does not show is absent, never 0.

    A text that holds nothing of any engine gives an empty dict; a broken sample line raises ExpositionError.  Our own
    names win over those of other engines, and among these the first table.
    """
    families = read_families(text)
    values: dict[str, float] = {}
    for name, sources in reversed(sources_in(frozenset(families))):
        value = next((value for source in sources if (value := source.read(families)) is not None), None)
        if value is not None:
            values[name] = float(value)
    return values


def kind_of(text: str) -> str | None:
    """Kind of the engine that shows this exposition, by the prefix of its families; None when no prefix is known."""
    names = {family_of(line) for line in text.splitlines() if line and not line.startswith("#")}
    if any(name.startswith(OUR_PREFIX) for name in names):
        return "pagedbench"
    for kind, (prefix, _) in TABLES.items():
        if any(name.startswith(prefix) for name in names):
            return kind
    return None


def parse_slots(text: str, pool_tokens: int | None = None) -> dict[str, float]:
    """KV slots from the JSON text of llama.cpp's ``/slots``, which tells what its ``/metrics`` no longer does.

    A row is a sequence's place.  ``n_prompt_tokens`` are the tokens in it, prompt and generated; they stay as a cache
    when the request has ended.  ``n_ctx`` is its share of the pool or, when the pool is unified, the whole pool; only
    with ``pool_tokens`` (the server's ``--ctx-size``) can the two be told apart, so without it nothing is said about
    reserved and allocated slots.  Rows of a release with other fields give nothing; a text that is no JSON list of
    rows raises ExpositionError.
    """
    try:
        rows = json.loads(text)
    except ValueError as error:
        raise ExpositionError(f"the engine's /slots text is not JSON: {error}") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ExpositionError("the engine's /slots text is not a list of slots")
    if not rows or not all(is_known_slot(row) for row in rows):
        return {}
    busy = [row for row in rows if row["is_processing"]]
    live = sum(row["n_prompt_tokens"] for row in busy)
    held = sum(row.get("n_prompt_tokens", 0) for row in rows)
    values = {"kv_slots_live": live, "kv_slots_evictable": held - live}
    if pool_tokens is not None:
        is_divided = sum(row["n_ctx"] for row in rows) <= pool_tokens
        values["kv_slots_reserved"] = pool_tokens
        values["kv_slots_allocated"] = sum(row["n_ctx"] for row in busy) if is_divided else live
    return {name: float(value) for name, value in values.items()}


def is_known_slot(row: Mapping[str, Any]) -> bool:
    """Whether a row of ``/slots`` tells its tokens.  A slot that never had a task (no ``id_task``) holds none."""
    is_unused = "id_task" not in row and not row.get("is_processing")
    return {"n_ctx", "is_processing"} <= row.keys() and ("n_prompt_tokens" in row or is_unused)
