"""The sequence of every rollout on any target: gate first, then traffic, and the previous release ends last.

Order: claim the address, start the new release next to the previous one, `/health`, one real completion
straight to the new release, write the release's document, switch, one completion at the public address,
settle, write `current.json`, end the previous one. If anything fails before `settle`, the previous release takes
the traffic; after a kill at any moment one of the two serves.
"""

from __future__ import annotations

import time
from pathlib import Path

from tasks.core.asking import ask
from tasks.core.cancellation import current
from tasks.core.digests import is_digest_of_model, short
from tasks.core.errors import EngineError, ModelError, RolloutError, SlipwayError, StageCancelledError
from tasks.core.files import fsync_folder, write_atomically
from tasks.core.prefetch import Prefetch, Prefetched, no_prefetch
from tasks.core.progress import say
from tasks.core.release import Release, ServiceFolder, ServiceState
from tasks.core.verdicts import RolloutVerdict, StageName
from tasks.engines.catalogue import get_engine
from tasks.rollout.attempt import Attempt, Rollout
from tasks.rollout.damage import set_damage_aside
from tasks.rollout.documents import is_kept, sweep_documents, write_document, write_state
from tasks.rollout.door import ReadKeys, digests_of, kept_door, no_secrets, own_key
from tasks.rollout.models import RolloutAction, RolloutPlan, RolloutResult, Running
from tasks.rollout.plan import plan_rollout
from tasks.rollout.report import what_serves
from tasks.rollout.target import OpenApi, Target

_POLL_S = 0.02
_BUSY_S = 60.0
"""How long a previous release that runs may be busy after a rollback, until it counts as not answering."""

_SERVES_ALREADY = (RolloutAction.NOTHING, RolloutAction.ADOPT)


def roll_out(
    release: Release,
    folder: ServiceFolder,
    target: Target,
    open_api: OpenApi,
    prefetch: Prefetch = no_prefetch,
    *,
    last: ServiceState | None = None,
    bring_back: bool = True,
    patient: bool = False,
    read_keys: ReadKeys = no_secrets,
    reopen: bool = True,
) -> RolloutResult:
    """Bring `release` into service; nothing is done if it serves already.

    `last` says where a service that was stopped served. If the release is rolled back and what served before does
    not run any more, that one is brought back, unless `bring_back` is False. With `patient` a release that runs
    already has its gate's `start_timeout_s` to answer before it is replaced: it may be busy, or load.

    The service's door gets the keys that `read_keys` finds in the release's secret, once the release serves; at a new
    address from the beginning. Without `reopen`, a release that names no secret leaves the door as it is.

    A model that the engine maps is prefetched during the check of its bytes and the engine's start: the page
    cache is the host's, and a container's too.

    A release that does not start, or does not answer, is a verdict: `rolled_back`. Raises `PortTakenError`,
    `ModelError` if the model file is not the one that was measured, `RolloutError` if the service runs on
    another target, and what the target raises when it cannot work at all; the previous release then serves on.
    """
    set_damage_aside(folder)
    state = folder.state()
    if state is not None and state.target != release.target:
        raise RolloutError(
            f"{release.name} runs on the target {state.target}, but this release is for {release.target}",
            fix=f"stop it first: slipway stop {release.name}",
        )
    sweep_documents(folder)
    rollout = Rollout(release, folder, target, open_api, read_keys=read_keys, reopen=reopen)
    _see_to_own_key(folder, target)
    if patient and (running := target.running()) is not None and running.release == release.id:
        _await_answer(rollout, running, release.spec.rollout.gate.start_timeout_s)
    plan = plan_rollout(release, state, _look(rollout), last)
    if plan.action in _SERVES_ALREADY:
        return _keep(rollout, plan)
    maps = (release.launch.model_file,) if get_engine(release.engine).card.maps_files else ()
    with prefetch(maps) as prefetched:
        result = _start(rollout, plan, prefetched, last)
    if result.verdict is RolloutVerdict.ROLLED_BACK:
        return _measured(rollout, result, bring_back=bring_back)
    return result


def _start(
    rollout: Rollout, plan: RolloutPlan, prefetched: Prefetched, last: ServiceState | None
) -> RolloutResult:
    """The attempt at the claimed address, unless the claim has brought the wanted release back."""
    release, folder, target = rollout.release, rollout.folder, rollout.target
    _check_model_file(release)
    door = rollout.door()
    port = target.claim(plan.host, plan.port, digests_of(door))
    if plan.serving is None and (restored := target.running()) is not None:
        # What served when the service's processes were killed is back: the previous release, or the wanted one.
        if restored.release == release.id:
            # While it loads, a second one may not fit into memory.
            _await_answer(rollout, restored, release.spec.rollout.gate.start_timeout_s)
        plan = plan_rollout(release, folder.state(), _look(rollout), last)
        if plan.action in _SERVES_ALREADY:
            return _keep(rollout, plan)
    attempt = Attempt(
        release, folder, target, rollout.open_api, plan, port, prefetched,
        read_keys=rollout.read_keys, reopen=rollout.reopen, opens_to=door,
    )  # fmt: skip
    return attempt.run()


def _see_to_own_key(folder: ServiceFolder, target: Target) -> None:
    """Make Slipway's own key anew if it is lost: without it, a locked service would seem not to answer."""
    if folder.door_file.exists() and own_key(folder) is None and target.running() is not None:
        target.lock(digests_of(kept_door(folder)))


def _measured(rollout: Rollout, result: RolloutResult, *, bring_back: bool) -> RolloutResult:
    """A rollback's result, with what was measured after it: whether the previous release completes a prompt.

    One that runs is never replaced for being slow: it may be busy, and a second engine would take its memory.
    """
    target, state = rollout.target, rollout.folder.state()
    running = target.running()
    answered = running is not None and _await_answer(rollout, running, _BUSY_S)
    if not answered:
        running = target.running()
        is_down = running is None or not running.up
        if is_down and bring_back and state is not None and _bring_back(rollout, state):
            running, answered = target.running(), True
    changes = {
        "serving": running.release if running else None,
        "endpoint": running.endpoint if running else None,
        "answers": answered if running or state else None,
    }
    result = result.model_copy(update=changes)
    say(StageName.ROLLOUT, f"{what_serves(result)}: {result.reason}")
    return result


def _bring_back(rollout: Rollout, state: ServiceState) -> bool:
    """Start the previous release again, which does not run any more; whether it answers then."""
    try:
        previous = rollout.folder.release(state.release)
        if previous is None:
            return False
        say(StageName.ROLLOUT, f"{short(state.release)} is no longer running: starting it again")
        back = roll_out(
            previous, rollout.folder, rollout.target, rollout.open_api,
            bring_back=False, read_keys=rollout.read_keys, reopen=False,
        )  # fmt: skip
    except StageCancelledError:
        raise
    except SlipwayError as error:
        say(StageName.ROLLOUT, f"{short(state.release)} could not be started again: {error}")
        return False
    return back.verdict is RolloutVerdict.SERVING


def stop_service(folder: ServiceFolder, target: Target, *, drain_s: float) -> bool:
    """End a service; whether there was anything to end. Its releases are kept, and which one it served.

    A document of the service that is damaged keeps no service from being stopped: it is set aside.
    """
    set_damage_aside(folder)
    running, state = target.running(), folder.state()
    was_there = running is not None or state is not None
    if state is not None:
        write_atomically(folder.last_file, state.model_dump_json(by_alias=True, indent=1))
    elif running is not None and (release := folder.release(running.release)) is not None:
        write_state(release, folder, running.host, running.port, None)
    target.stop(drain_s=drain_s)
    if folder.state_file.exists():
        folder.state_file.unlink()
        fsync_folder(folder.root)
    return was_there


def answers(release: Release, base_url: str, open_api: OpenApi) -> bool:
    """Whether the service really completes a prompt, not only says that it is well."""
    with open_api(base_url) as api:
        if not api.ready():
            return False
        try:
            ask(api, release.config, release.spec.rollout.gate.prompt, 1)
        except EngineError:
            return False
        return True


def still_serves(
    result: RolloutResult,
    release: Release,
    folder: ServiceFolder,
    target: Target,
    open_api: OpenApi,
    read_keys: ReadKeys = no_secrets,
) -> bool:
    """Whether what a recorded rollout brought into service is still there, answers, and is written down.

    What serves and is not written down, as after a later rollout that was killed, is for `roll_out` to adopt.
    The door gets the keys that the secret has now. Raises what `read_keys` raises.
    """
    rollout = Rollout(release, folder, target, open_api, read_keys=read_keys)
    _see_to_own_key(folder, target)
    running = _look(rollout)
    if running is None or running.endpoint != result.endpoint or not is_kept(release, folder):
        return False
    if plan_rollout(release, folder.state(), running).action is not RolloutAction.NOTHING:
        return False
    target.claim(running.host, running.port)  # held already: sweeps what a killed rollout left
    rollout.lock(rollout.door())
    return True


def _keep(rollout: Rollout, plan: RolloutPlan) -> RolloutResult:
    release, folder, target = rollout.release, rollout.folder, rollout.target
    running, door = target.running(), rollout.door()
    assert running is not None  # else the plan would be to start
    target.claim(running.host, running.port)  # held already: sweeps what a killed rollout left
    if not is_kept(release, folder):
        write_document(release, folder)
    if plan.action is RolloutAction.ADOPT:
        write_state(release, folder, running.host, running.port, plan.previous)
    rollout.lock(door)
    found = {"endpoint": running.endpoint, "serving": release.id, "previous": plan.previous}
    return rollout.result(plan, RolloutVerdict.SERVING, **found)


def _await_answer(rollout: Rollout, running: Running, patience_s: float) -> bool:
    """Whether a release that runs completes a prompt within `patience_s`; False at once if its engine ends."""
    deadline = time.monotonic() + patience_s
    now: Running | None = running
    told = False
    while now is not None and now.up:
        if answers(rollout.release, running.endpoint, rollout.open_api):
            return True
        if time.monotonic() > deadline:
            return False
        if not told:
            say(
                StageName.ROLLOUT,
                f"{rollout.release.name} runs but does not answer yet: waiting up to {patience_s:g} s",
            )
            told = True
        current().check()
        time.sleep(_POLL_S)
        now = rollout.target.running()
    return False


def _check_model_file(release: Release) -> None:
    """Engines serve damaged weights without complaint: the bytes have to be those that were measured."""
    path = release.launch.model_file
    if not path.exists():
        raise ModelError(f"{path} is gone", fix="deploy again to recreate it")
    if not (path.is_file() or path.is_dir()):  # to read a pipe may take for ever
        raise ModelError(f"{path} is not a file", fix="remove it, then deploy again to recreate it")
    if not is_digest_of_model(release.candidate_digest, path):
        raise ModelError(
            f"{path} has changed since it was measured", fix="remove it, then deploy again to recreate it"
        )
    template = release.config.template_file
    if template and not Path(template).exists():
        raise ModelError(f"the chat template {template} is gone", fix="deploy again to recreate it")


def _look(rollout: Rollout) -> Running | None:
    """What runs; asked for a completion only if the answer decides something."""
    release, running = rollout.release, rollout.target.running()
    if running is None or running.release != release.id or not running.up:
        return running
    return running.model_copy(update={"up": answers(release, running.endpoint, rollout.open_api)})
