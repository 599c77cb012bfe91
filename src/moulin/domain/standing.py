"""Where a step stands with the engine that took it: a reading made when somebody asks, kept by nobody."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What an engine read last of one step. Times are ns UTC, 0 when not known.

    `engine` is who says so, in words for people. `job` is what the engine calls what runs the step, the
    same for a whole gang, empty while that is not known. `word` is the engine's own word for what it
    waits for, empty when it waits for nothing there; `meaning` says the same in a plain sentence, and
    `detail` what else the engine says of it. It has waited since `since_ns`, and the engine expects it
    to start at `expected_ns`, or, of one that runs, ends it itself at `wall_ns`. `read_at_ns` is how old all this is, and `failure` why it is not newer,
    empty while it is new enough.
    """

    engine: str
    job: str = ""
    word: str = ""
    meaning: str = ""
    detail: str = ""
    since_ns: int = 0
    expected_ns: int = 0
    wall_ns: int = 0
    read_at_ns: int = 0
    failure: str = ""
