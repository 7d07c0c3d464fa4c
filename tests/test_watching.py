"""Notes of watchers: who lives, and who was killed."""

import json
from pathlib import Path

from sage_reconcile.home import Home
from sage_reconcile.watching import announced, left_behind, watchers


def test_a_killed_watcher_of_the_same_file_is_found_once(tmp_path: Path) -> None:
    home, ours, other = Home(tmp_path / "home"), tmp_path / "sage.yaml", tmp_path / "other.yaml"
    with announced(home, [ours]):
        for pid, file in ((11, ours), (12, other)):
            note = {"pid": pid, "stack": "s", "files": [str(file)]}
            (home.root / "watch" / f"{pid}.json").write_text(json.dumps(note))
        assert left_behind(home, [ours]) == (11,)
        assert left_behind(home, [ours]) == ()
        assert len(watchers(home)) == 1, "the living one keeps its note"
