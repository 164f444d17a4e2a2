"""What `up` starts and when it starts it again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flexinfer.programs import BUILD, OPERATOR, PREFECT_SERVER, ROUTER
from flexinfer.settings import PrefectSection, ServeSection, Settings
from flexinfer.up.services import MAX_EXITS, WINDOW_S, drain_s, restart_delay_s, services


def names(settings: Settings, environ: dict[str, str]) -> list[str]:
    return [service.name for service in services(settings, environ)]


def test_everything_is_started_by_default() -> None:
    assert names(Settings(), {}) == ["operator", "serve", "prefect", "pipelines"]


def test_a_prefect_server_of_the_users_own_is_used() -> None:
    assert names(Settings(), {"PREFECT_API_URL": "http://x/api"}) == [
        "operator",
        "serve",
        "pipelines",
    ]


def test_prefect_can_be_left_out() -> None:
    settings = Settings(prefect=PrefectSection(enabled=False))
    assert names(settings, {}) == ["operator", "serve"]


def test_each_service_gets_what_it_reads() -> None:
    assert {service.name: service.reads for service in services(Settings(), {})} == {
        "operator": OPERATOR,
        "serve": ROUTER,
        "prefect": PREFECT_SERVER,
        "pipelines": BUILD,
    }


def test_the_operator_whose_engines_answer_ends_after_the_router_that_drains() -> None:
    found = services(Settings(), {})
    assert [service.name for service in found if service.is_last_to_end] == ["operator"]


def test_the_router_is_not_killed_while_it_drains() -> None:
    settings = Settings(serve=ServeSection(drain_delay_s=3.0, drain_timeout_s=40.0))
    assert drain_s(settings) == 43.0
    (router,) = (one for one in services(settings, {}) if one.name == "serve")
    assert router.grace_s > 43.0


def test_each_start_waits_longer() -> None:
    delays = [restart_delay_s([float(i) for i in range(n)], now_s=float(n)) for n in (1, 2, 3)]
    assert delays == [0.5, 1.0, 2.0]


def test_a_child_that_keeps_ending_is_given_up() -> None:
    exits = [float(i) for i in range(MAX_EXITS + 1)]
    assert restart_delay_s(exits, now_s=exits[-1]) is None


def test_exits_of_long_ago_are_forgiven() -> None:
    exits = [float(i) for i in range(MAX_EXITS + 1)]
    assert restart_delay_s(exits, now_s=exits[-1] + WINDOW_S + 1) == 0.5


def test_what_was_refused_as_bad_input_is_not_tried_again() -> None:
    assert restart_delay_s([0.0], now_s=0.0, code=2) is None


@given(st.lists(st.floats(0, 1e6), max_size=16), st.floats(0, 1e6))
def test_the_wait_is_bounded_or_absent(exits: list[float], now_s: float) -> None:
    delay_s = restart_delay_s(sorted(exits), now_s=now_s)
    assert delay_s is None or 0.5 <= delay_s <= 15.0
