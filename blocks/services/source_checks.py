"""What the files of a model say against serving it as a spec asks, before any of them is copied."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from blocks.processes.chat_check import check_rendering
from tasks.core.chat_template import MORE_TEMPLATES, OWN_FILE, TEMPLATE_FILES
from tasks.core.chat_tokens import TOKEN_FILES, chat_in
from tasks.core.errors import SlipwayError
from tasks.core.model_shape import ModelShape, parse_model_config, parse_model_shape
from tasks.core.model_task import Purpose, Task
from tasks.core.spec import DeploySpec
from tasks.engines.catalogue import get_engine
from tasks.engines.families import check_family
from tasks.staging.apply import check_files, plan_copy
from tasks.staging.plan import CONFIG_FILE
from tasks.staging.source import Pinned
from tasks.tuning.plan import check_load


def check_source(spec: DeploySpec, pinned: Pinned, purpose: Purpose) -> ModelShape:
    """The shape of a model in safetensors that may be served for that purpose as the spec asks, by the names of its
    files, its configuration, tokenizer and chat template: a few small reads. Raises `ModelError` or `SpecError`."""
    check_files(pinned, convertible=get_engine(spec.engine).card.loads_gguf, servable=True)
    where = f"{pinned.source.name}/{CONFIG_FILE}"
    text = pinned.read_whole(CONFIG_FILE)
    check_family(parse_model_config(text, where))
    shape = parse_model_shape(text, where)
    check_load(spec.engine, spec.tuning, shape.max_context, purpose.task)
    if purpose.task is Task.GENERATE:
        _check_chat(spec, pinned)
    return shape


def check_headers(spec: DeploySpec, pinned: Pinned) -> tuple[str, ...]:
    """What staging would remark on, by the header of every file of weights. Raises `ModelError`."""
    plan = plan_copy(
        pinned,
        spec.staging.shards,
        convertible=get_engine(spec.engine).card.loads_gguf,
        servable=True,
        trust_remote_code=spec.serving.trust_remote_code,
    )
    return plan.remarks


def _check_chat(spec: DeploySpec, pinned: Pinned) -> None:
    """Whether the chat template renders and answers can end, from copies of the small files that say so."""
    wanted = {CONFIG_FILE, OWN_FILE, *TEMPLATE_FILES, *TOKEN_FILES}
    with TemporaryDirectory(prefix="slipway-model-") as place:
        for file in pinned.files:
            if file.path in wanted or file.path.startswith(f"{MORE_TEMPLATES}/"):
                Path(place, file.path).parent.mkdir(exist_ok=True)
                Path(place, file.path).write_bytes(pinned.read_whole(file.path))
        try:
            chat_in(Path(place), spec.serving.chat_template, check_rendering)
        except SlipwayError as error:
            told = error.what.replace(place, pinned.source.name)
            raise type(error)(told, fix=error.fix, detail=error.detail) from None
