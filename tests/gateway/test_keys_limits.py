"""Keys and their limits, as values: the time is given. How much passes, and what a refusal says."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import RequestError
from gateway.keys import MODEL_LENGTH_KNOWN, MODELS_KNOWN, Key, Keys, load_keys, refusal
from gateway.keysource import KeyEntry
from gateway.limits import SLACK_S, Bucket
from sage_reconcile.secrets import key_digest

NOW = 1e6


def key(workers: int = 1, **fields: Any) -> Key:
    return Key(KeyEntry("team-a", key_digest("k"), **fields), workers)


def refused(error: RequestError | None) -> tuple[int, str, dict[str, str]]:
    assert error is not None
    return error.status, error.code, error.headers


# Times go on by these seconds; each request reserves tokens and uses a share of them, at once or never.
STEP = st.tuples(st.floats(0, 90), st.integers(0, 400), st.one_of(st.none(), st.floats(0, 1)))
STEPS = st.lists(STEP, min_size=1, max_size=30)
LIMIT = st.integers(1, 300)


@given(STEPS, LIMIT, LIMIT, st.integers(1, 7), st.floats(0, 1e6))
def test_never_more_than_a_minutes_worth_and_what_has_flown_in(
    steps: list[tuple[float, int, float | None]], requests: int, tokens: int, workers: int, now: float
) -> None:
    """In every stretch of time, for requests and for tokens."""
    one = key(workers, requests_per_minute=requests, tokens_per_minute=tokens)
    request_size, token_size = -(-requests // workers), -(-tokens // workers)
    passed: list[tuple[float, int, int]] = []
    for pause, reserved, used_share in steps:
        now += pause
        if one.admit("m", reserved, now) is not None:
            continue
        used = reserved
        if used_share is not None:
            used = int(reserved * used_share)
            one.finish(reserved, used, now)
        passed.append((now, 1, used))
    for first, (begin, _, _) in enumerate(passed):
        requests_so_far = tokens_so_far = 0
        for end, count, used in passed[first:]:
            requests_so_far += count
            tokens_so_far += used
            minutes = 1 + (end - begin + SLACK_S) / 60
            assert requests_so_far <= request_size * minutes + 1e-6
            assert tokens_so_far <= token_size * minutes + 1e-6


@given(STEPS, LIMIT, LIMIT, st.floats(0, 1e6))
def test_after_the_time_that_a_refusal_tells_it_passes(
    steps: list[tuple[float, int, float | None]], requests: int, tokens: int, now: float
) -> None:
    """And not a whole second before."""
    one = key(requests_per_minute=requests, tokens_per_minute=tokens)
    for pause, reserved, _ in steps:
        now += pause
        error = one.admit("m", reserved, now)
        if error is None:
            continue
        if reserved > tokens:
            assert refused(error) == (429, "rate_limited", {"x-should-retry": "false"})
            continue
        seconds = int(error.headers["retry-after"])
        assert seconds >= 1
        if seconds > 1:
            assert one.admit("m", reserved, now + seconds - 1.001) is not None
        now += seconds
        assert one.admit("m", reserved, now) is None


@given(LIMIT, st.floats(0, 1e7))
def test_after_a_rest_a_whole_minutes_worth_passes_at_once(size: int, now: float) -> None:
    bucket = Bucket(size)
    for _ in range(size):
        assert bucket.wait(1, now) <= SLACK_S
        bucket.take(1, now)
    assert bucket.wait(1, now) == pytest.approx(60 / size)
    assert bucket.wait(size, now + 60) <= SLACK_S


def test_tokens_that_were_not_used_come_back_and_more_are_owed() -> None:
    one = key(tokens_per_minute=100)
    assert one.admit("m", 100, NOW) is None
    assert refused(one.admit("m", 1, NOW)) == (429, "rate_limited", {"retry-after": "1"})
    one.finish(100, 40, NOW)
    assert one.admit("m", 60, NOW) is None
    one.finish(60, 160, NOW)
    error = one.admit("m", 10, NOW)
    assert refused(error) == (429, "rate_limited", {"retry-after": "66"})
    assert "'team-a' has used up its tokens: 100 a minute. Try again in 66 s." in str(error)
    assert (one.tokens, one.requests, one.refused, one.in_flight) == (200, 2, 2, 0)


def test_what_comes_back_fills_no_bucket_beyond_its_size() -> None:
    one = key(tokens_per_minute=100)
    assert one.admit("m", 100, NOW) is None
    one.finish(100, 0, NOW + 60)
    assert one.admit("m", 100, NOW + 60) is None
    assert one.admit("m", 1, NOW + 60) is not None


def test_a_refused_request_takes_nothing() -> None:
    one = key(requests_per_minute=2, tokens_per_minute=10)
    assert one.admit("m", 10, NOW) is None
    for _ in range(5):
        assert refused(one.admit("m", 5, NOW))[2] == {"retry-after": "30"}
    one.finish(10, 0, NOW)
    assert one.admit("m", 10, NOW) is None


def test_requests_in_flight() -> None:
    one = key(max_concurrent=2)
    assert [one.admit("m", 0, NOW) for _ in range(2)] == [None, None]
    error = one.admit("m", 0, NOW)
    assert refused(error) == (429, "too_many_concurrent", {})
    assert "as many requests in flight as it may: 2." in str(error)
    one.finish(0, 7, NOW)
    assert one.admit("m", 0, NOW) is None
    assert (one.in_flight, one.tokens) == (2, 7)


def test_workers_share_a_limit_and_each_lets_one_pass() -> None:
    one = key(4, requests_per_minute=5, max_concurrent=2)
    assert one.admit("m", 0, NOW) is None
    error = one.admit("m", 0, NOW)
    assert error is not None
    assert "in flight as it may: 2, 1 in each of 4 workers." in str(error)
    one.finish(0, 0, NOW)
    assert one.admit("m", 0, NOW) is None
    one.finish(0, 0, NOW)
    error = one.admit("m", 0, NOW)
    assert refused(error)[2] == {"retry-after": "30"}
    assert "5, 2 in each of 4 workers a minute" in str(error)


def test_a_key_without_limits_counts_all_the_same() -> None:
    one = key()
    assert [one.admit("any", 10**9, NOW) for _ in range(100)] == [None] * 100
    one.finish(10**9, 5, NOW)
    assert (one.in_flight, one.requests, one.tokens) == (99, 100, 5)


@pytest.mark.parametrize(
    ("models", "allowed", "forbidden"),
    [
        ((), ["a", "org/b", ""], []),
        (("chat",), ["chat"], ["Chat", "chat2", "cha", "", "x/chat"]),
        (("chat", "org/*"), ["chat", "org/a", "org/a/b", "org/"], ["org", "orgs/a", "my-org/a"]),
        (("a?", "[xy]-*"), ["ab", "x-", "y-1", "a?"], ["a", "abc", "z-1", "ab\n"]),
        (("a.b",), ["a.b"], ["axb"]),
    ],
)
def test_models(models: tuple[str, ...], allowed: list[str], forbidden: list[str]) -> None:
    one = key(models=models)
    for _ in range(2):
        assert [one.may_use(model) for model in allowed] == [True] * len(allowed)
        assert [one.may_use(model) for model in forbidden] == [False] * len(forbidden)


def test_a_model_that_is_not_allowed() -> None:
    one = key(models=("chat", "org/*"))
    error = one.admit("gpt", 5, NOW)
    assert refused(error) == (403, "model_not_allowed", {})
    assert error is not None
    assert error.payload()["error"]["type"] == "permission_error"
    assert str(error) == "The API key 'team-a' may not use the model 'gpt'. Allowed: chat, org/*."
    assert (one.in_flight, one.requests, one.refused) == (0, 0, 1)
    assert len(str(one.admit("x" * 10**6, 5, NOW))) < 300


def test_names_that_clients_make_up_fill_no_memory() -> None:
    one = key(models=("org/*",))
    for number in range(3 * MODELS_KNOWN):
        one.may_use(f"org/{number}")
        one.may_use(f"{number}")
    one.may_use("org/" + "x" * MODEL_LENGTH_KNOWN)
    assert len(one._known) <= MODELS_KNOWN
    assert max(map(len, one._known)) < MODEL_LENGTH_KNOWN


def test_paths() -> None:
    environ = {"SAGE_API_KEYS": "k", "SAGE_ADMIN_API_KEYS": "root"}
    keys = load_keys(environ, "")
    plain, admin = keys.find(b"Bearer k", b""), keys.find(b"Bearer root", b"")
    for path in ("/v1/chat/completions", "/v1/models", "/metrics", "/ready", "/docs", "/nope"):
        assert refused(refusal(keys, path, None)) == (401, "invalid_api_key", {"www-authenticate": "Bearer"})
        assert refusal(keys, path, plain) is None
        assert refusal(keys, path, admin) is None
    for path in ("/admin/metrics", "/admin/set_policy", "/admin", "/v1/management", "/v1/management/engines"):
        assert refused(refusal(keys, path, None))[0] == 401
        assert refused(refusal(keys, path, plain)) == (403, "admin_key_required", {})
        assert "SAGE_ADMIN_API_KEYS" not in str(refusal(keys, path, plain))
        assert refusal(keys, path, admin) is None
    assert refusal(keys, "/health", None) is None


def test_without_an_admin_key_the_refusal_says_how_to_make_one() -> None:
    keys = load_keys({"SAGE_API_KEYS": "k"}, "")
    error = refusal(keys, "/admin/metrics", keys.find(b"", b"k"))
    assert refused(error)[0] == 403
    assert "sage gateway key" in str(error)
    assert "SAGE_ADMIN_API_KEYS" in str(error)


def test_without_any_key_all_is_open() -> None:
    for path in ("/v1/models", "/admin/metrics", "/v1/management"):
        assert refusal(Keys([]), path, None) is None
