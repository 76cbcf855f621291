"""What is kept of answers, and for how long."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit_server.api.responses_store import ResponseStore
from edgekit_server.errors import RequestError

GIVEN = [{"type": "message", "role": "user", "content": "hi"}]


def _response(number: int, text: str = "x") -> dict[str, object]:
    item = {"id": f"msg_{number}", "type": "message", "content": [{"text": text}]}
    return {"id": f"resp_{number}", "output": [item]}


def test_a_chain_holds_all_items_in_order() -> None:
    store = ResponseStore()
    store.put(_response(1), GIVEN)
    store.put(_response(2), GIVEN, store.previous("resp_1"))
    items = store.get("resp_2").items()
    assert [item.get("id", "given") for item in items] == ["given", "msg_1", "given", "msg_2"]


def test_the_end_of_a_chain_outlives_its_beginning() -> None:
    store = ResponseStore()
    store.put(_response(1), GIVEN)
    store.put(_response(2), GIVEN, store.previous("resp_1"))
    store.delete("resp_1")
    assert len(store.get("resp_2").items()) == 4
    assert store.item("msg_1") is None
    assert store.item("msg_2") is not None


def test_the_least_recently_used_leaves_first() -> None:
    store = ResponseStore(max_responses=2)
    store.put(_response(1), GIVEN)
    store.put(_response(2), GIVEN)
    store.get("resp_1")
    store.put(_response(3), GIVEN)
    assert store.item("msg_2") is None
    assert store.item("msg_1") is not None
    assert len(store) == 2


def test_one_larger_than_the_store_is_not_kept_and_drives_nothing_out() -> None:
    store = ResponseStore(max_bytes=1000)
    store.put(_response(1), GIVEN)
    store.put(_response(2, "x" * 1000), GIVEN)
    assert len(store) == 1
    with pytest.raises(RequestError) as caught:
        store.previous("resp_2")
    assert (caught.value.status, caught.value.code, caught.value.param) == (
        400,
        "previous_response_not_found",
        "previous_response_id",
    )


@pytest.mark.parametrize("action", ["get", "delete"])
def test_what_is_not_there_is_a_404(action: str) -> None:
    with pytest.raises(RequestError, match="resp_x") as caught:
        getattr(ResponseStore(), action)("resp_x")
    assert (caught.value.status, caught.value.code) == (404, "response_not_found")


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["put", "delete", "chain"]),
            st.integers(0, 9),
            st.text(max_size=80),
        ),
        max_size=40,
    )
)
def test_the_bounds_hold_and_the_count_is_right(steps: list[tuple[str, int, str]]) -> None:
    store = ResponseStore(max_responses=4, max_bytes=1500)
    known: set[str] = set()
    for number, (action, which, text) in enumerate(steps):
        try:
            if action == "delete":
                store.delete(f"resp_{which}")
            else:
                before = store.previous(f"resp_{which}") if action == "chain" else None
                store.put(_response(number, text), GIVEN, before)
                known.add(f"resp_{number}")
        except RequestError:
            pass
        kept = [store.get(name) for name in known if name in store._kept]
        assert len(store) == len(kept) <= 4
        assert store.n_bytes == sum(one.n_bytes for one in kept) <= 1500
        assert set(store._owners) == {item for one in kept for item in one.own}
