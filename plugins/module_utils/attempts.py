# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""One engine on one host: the variant that serves best there, or what stands in the way. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.dsprov.appliance.plugins.module_utils.expert_trials import expert_trials
from ansible_collections.dsprov.appliance.plugins.module_utils.layer_trials import layer_trials
from ansible_collections.dsprov.appliance.plugins.module_utils.tensor_trials import tensor_trials
from ansible_collections.dsprov.appliance.plugins.module_utils.trials import KNEE_BITS, Situation, Trial, bits


@dataclass(frozen=True)
class Attempt:
    """One engine tried on one host: the variant taken, those turned down, the hosts of its group and the
    network card by which this one meets them."""

    engine: str
    taken: Trial
    others: tuple[Trial, ...] = field(default=())
    group: tuple[str, ...] = field(default=())
    nic: Mapping[str, Any] | None = None

    @property
    def ok(self) -> bool:
        """Whether the engine can serve on this host."""
        return self.taken.ok

    @property
    def deliverable(self) -> bool:
        """Whether it serves weights that this release can bring."""
        return self.ok and all(problem["code"] != "weights-unverified" for problem in self.taken.problems)


def attempt(situation: Situation) -> Attempt:
    """The best that one engine can do on one host."""
    trials = _TRIALS[situation.engine_name](situation)
    good = [trial for trial in trials if trial.ok]
    if good:
        taken = min(good, key=lambda trial: _worse(situation.model, trial))
    else:
        # The least demanding one says best what is missing.
        taken = min(trials, key=lambda trial: situation.model["variants"][trial.variant]["bytes"])
    return Attempt(situation.engine_name, taken, tuple(trial for trial in trials if trial is not taken))


def _worse(model: Mapping[str, Any], trial: Trial) -> tuple[bool, bool, int, bool, int]:
    """Order of what works: what can be delivered, what needs no CPU, then the most precise.

    Where a CPU has part of the work its speed goes by bytes, so beyond the knee less is better.
    """
    variant = model["variants"][trial.variant]
    size = variant["bytes"]
    heavy = not trial.full and bits(model, trial.variant) > KNEE_BITS
    return ("files" not in variant, not trial.full, trial.rank, heavy, size if heavy else -size)


_TRIALS = {
    "ollama": layer_trials,
    "llama_cpp": layer_trials,
    "vllm": tensor_trials,
    "ktransformers": expert_trials,
}
