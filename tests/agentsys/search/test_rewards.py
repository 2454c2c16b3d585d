"""Tallies and process rewards of a tree with checked leaves."""

from __future__ import annotations

from typing import Any

from agentsys.search import Node, process_rewards, tally


def make_tree() -> Node[Any]:
    """Two first steps: one with rollouts and two ends, one that was never tried; and one whose call failed."""
    root: Node[Any] = Node.root(())
    first = root.add(1, step={"call": "a", "rollouts": [{"right": True}, {"right": False}]})
    first.add(2, step={"call": "b", "right": True})
    first.add(3, step={"call": "c", "right": False})
    root.add(4, step={"call": "d"})
    failed = root.add(None, step={"call": "e"})
    failed.outcome = "failed"
    return root


def test_a_tally_counts_ends_and_rollouts() -> None:
    root = make_tree()
    assert tally(root) == tally(root.children[0]) == (2, 4)
    assert [tally(child) for child in root.children[0].children] == [(1, 1), (0, 1)]
    assert tally(root.children[1]) == (0, 0)


def test_each_step_has_its_label_once() -> None:
    """The first path has the labels of both of its steps, the second one only that of its last."""
    one, other = process_rewards(make_tree())
    assert [segment.call or segment.prompt for segment in one.segments] == ["a", "a", "b"]
    assert [(label.segment, label.share, label.visits) for label in one.labels] == [(1, 0.5, 4), (2, 1.0, 1)]
    assert [segment.call or segment.prompt for segment in other.segments] == ["a", "a", "c"]
    assert [(label.segment, label.share, label.visits) for label in other.labels] == [(2, 0.0, 1)]
    assert [segment.learned for segment in other.segments] == [False, False, True]


def test_a_tree_without_finished_solutions_has_none() -> None:
    root: Node[Any] = Node.root(())
    root.add(1, step={"call": "a"})
    assert process_rewards(root) == []
