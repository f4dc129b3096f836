"""Nothing that looks like a secret leaves, and what only resembles one does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.core.errors import SlipwayError
from tasks.core.redaction import names_secret, redact, redacted_value, remember, secrets_of

HIDDEN_IN_TEXT = {
    "http://ci:TopSecret1@registry:5000/x": "http://***@registry:5000/x",
    "postgresql+asyncpg://slipway:pa@ss@db/prefect": "postgresql+asyncpg://***@db/prefect",
    "https://user:pa/ss@host/simple": "https://***@host/simple",
    "git+https://deadbeefdeadbeef@github.com/o/r": "git+https://***@github.com/o/r",
    "redis://:pw@127.0.0.1:6379/0": "redis://***@127.0.0.1:6379/0",
    "Authorization: Bearer abc.def": "Authorization: ***",
    "{'authorization': 'Basic dXNlcjpwdw=='}": "{'authorization': '***'}",
    r"Illegal header value b'Bearer abc\ndefghi'": "Illegal header value b'Bearer ***'",
    "with Basic dXNlcjpwdw== in it": "with Basic *** in it",
    "sent Basic bWU6c2VjcmV0": "sent Basic ***",
    "[(b'Authorization', b'Bearer abc'), (b'Accept', b'*/*')]": "[(b'Authorization', b'***'), (b'Accept', b'*/*')]",
    "bearer 0123456789abcdef0123456789abcdef": "bearer ***",
    "Bearer 550e8400-e29b-41d4-a716-446655440000 is refused": "Bearer *** is refused",
    "https://h/p?token=abc&x=1": "https://h/p?token=***&x=1",
    "https://h/p?x=1&access_token=abc": "https://h/p?x=1&access_token=***",
    "password=hunter2 user=me": "password=*** user=me",
    "PGPASSWORD='hunter2'": "PGPASSWORD='***'",
    "--api-key=abc --port=1": "--api-key=*** --port=1",
    '{"secret_key": "abc/def"}': '{"secret_key": "***"}',
    "aws_secret_access_key=ab/c+d": "aws_secret_access_key=***",
    "https://s3/b/k?X-Amz-Credential=AKIA%2F1&X-Amz-Signature=abc0&X-Amz-Expires=9": (
        "https://s3/b/k?X-Amz-Credential=***&X-Amz-Signature=***&X-Amz-Expires=9"
    ),
    "the key AKIAIOSFODNN7EXAMPLE is unknown": "the key *** is unknown",
    "ghp_0123456789abcdefghijABCDEFGHIJ012345": "***",
    "hf_abcdefghijKLMNOPqrstuvwxyz is refused": "*** is refused",
    "glpat-x_Y1aBcDeFgHiJkLmNoP": "***",
    "sk-proj-0123456789abcdefghij": "***",
    "key 'sk-ant-api03-aB3dE5gH7jK9mN1pQ-_rS' is refused": "key '***' is refused",
    "OPENAI=sk-AbCdEfGh12345678": "OPENAI=***",
    "-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----": "***",
}

LEFT_AS_IT_IS = (
    "http://127.0.0.1:4200/api",
    "http://host:8080/@scope/package",
    "http://[::1]:4200/x@y",
    "s3://bucket/prefix/model.safetensors",
    "models:/assistant@champion",
    "max_tokens=64, tokens: 12, prompt_tokens=7",
    "time per output token: 4.1 ms",
    "tokenizer: tokenizer.json, tokenizer=fast",
    "Basic authentication is needed, or a Bearer token",
    "sha256:0123456789abcdef0123456789abcdef",
    "the password is asked for",
    "file:/models/llama-3-sk-instruct-finetuned-v2",
    "/srv/sk-production-inference-01/env/bin/python",
    "sk-support-chat-assistant",
    "sk-Llama-3.1-8B-Instruct-v2-GGUF",
    "/models/hf_internationalization/glpat-support-chat-assistant-2",
    "a basic example, basic azores, a Basic Instruct model, basic OpenAI-compatible answers",
    "basic Qwen2.5-7B-Instruct-GPTQ-Int4, bearer Llama-3.1-8B-Instruct",
)

WORDS = st.one_of(
    st.from_regex(r"[a-z]{1,14}|[0-9]{1,8}", fullmatch=True),
    st.sampled_from(
        ["sk", "hf", "ghp", "glpat", "github", "pat", "basic", "bearer", "token", "key", "secret", "password",
         "authorization", "header", "akia", "eyj"]
    ),
)  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), HIDDEN_IN_TEXT.items())
def test_what_looks_like_a_secret_is_hidden(text: str, expected: str) -> None:
    assert redact(text) == expected
    assert redact(expected) == expected


@pytest.mark.parametrize("text", LEFT_AS_IT_IS)
def test_what_only_resembles_one_stays(text: str) -> None:
    assert redact(text) == text


@given(words=st.lists(st.tuples(st.sampled_from(("-", "_", ".", "/", " ")), WORDS), min_size=1, max_size=12))
def test_names_paths_and_sentences_of_ordinary_words_stay(words: list[tuple[str, str]]) -> None:
    text = "".join(piece for pair in words for piece in pair)
    for whole in (text, text[1:], f"file:{text}", f"s3://bucket{text}"):
        assert redact(whole) == whole


@pytest.mark.parametrize("secret", ["sesame-open", "two\nlines of it", "a/b+c=d e", "tab\tand 'quote'"])
def test_a_known_secret_is_hidden_in_every_form(secret: str) -> None:
    from urllib.parse import quote

    printed = [secret, repr(secret), str(secret.encode()), " ".join(secret.split()), quote(secret, safe="")]
    for text in printed:
        hidden = redact(f"before {text} after", [secret])
        assert hidden.startswith("before ")
        assert hidden.endswith(" after")
        assert "***" in hidden
        assert not any(part in hidden for part in (secret, "lines of it", "b+c", "and 'q"))


@pytest.mark.parametrize(
    "name",
    ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "DATABASE_URL", "OPENAI_API_KEY",
     "AZURE_CLIENT_SECRET", "GITHUB_TOKEN", "HF_TOKEN", "DB_PASS", "PREFECT_API_AUTH_STRING", "SENTRY_DSN",
     "PREFECT_SERVER_ENCRYPTION_KEY"],
)  # fmt: skip
def test_variables_that_hold_secrets(name: str) -> None:
    assert names_secret(name)
    assert secrets_of({name: "long enough"}) == {"long enough"}
    assert secrets_of({name: "true"}) == frozenset()


@pytest.mark.parametrize(
    "name", ["SLIPWAY_PASS_ENV", "TOKENIZERS_PARALLELISM", "VLLM_MAX_TOKENS_PER_EXPERT", "PATH", "KEYBOARD"]
)
def test_variables_that_hold_none(name: str) -> None:
    assert not names_secret(name)


def test_where_a_secret_is_kept_is_not_one() -> None:
    kept = {"GOOGLE_APPLICATION_CREDENTIALS": "/etc/google.json", "DB_PASSWORD_FILE": "/run/secrets/db"}
    assert secrets_of(kept) == frozenset()


def test_values_are_hidden_by_their_keys_and_their_texts() -> None:
    value = {
        "password": "x", "eos_token": "</s>", "tokens": 3, "hf_token": "y", "password_file": "/f",
        "rows": [{"url": "http://a:b@c/"}, ("Bearer abcdEFGH12345678", 1)],
    }  # fmt: skip
    assert redacted_value(value) == {
        "password": "***", "eos_token": "</s>", "tokens": 3, "hf_token": "***", "password_file": "/f",
        "rows": [{"url": "http://***@c/"}, ("Bearer ***", 1)],
    }  # fmt: skip


def test_the_name_of_a_secret_is_shown_and_a_key_in_its_place_is_not() -> None:
    names = ["file:/etc/slipway/keys of mine", "block:chat-keys"]
    assert [redacted_value({"api_key": name}) for name in names] == [{"api_key": name} for name in names]
    for key in ("file:relative", "block:", "block:a b", "sk-1"):
        assert redacted_value({"api_key": key}) == {"api_key": "***"}
    assert redact("serving.api_key: must be a name") == "serving.api_key: must be a name"
    assert redact("serving.api_key: mustang") == "serving.api_key: ***"


def test_what_is_read_back_is_hidden_by_what_is_known_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "known to this process")
    value = {
        "model": "sk-proj-0123456789abcdefghij", "log": ["known to this process", "token=x"],
        "url": "s3://a:b@c/d", "password": "x",
    }  # fmt: skip
    assert redacted_value(value, by_look=False) == {
        "model": "sk-proj-0123456789abcdefghij", "log": ["***", "token=x"],
        "url": "s3://***@c/d", "password": "***",
    }  # fmt: skip


def test_errors_hide_what_the_process_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "first half\nsecond half")
    remember("kept in a block")
    error = SlipwayError(
        "Bearer first half\nsecond half was refused",
        fix="not http://ci:TopSecret1@h but another",
        detail="kept in a block\nsecond half",
    )
    assert error.as_json() == {
        "error": "SlipwayError",
        "what": "Bearer *** was refused",
        "fix": "not http://***@h but another",
        "detail": "***\n***",
        "retryable": False,
    }
