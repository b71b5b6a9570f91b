"""A process with an engine of its own, which answers what `replicas.py` asks it."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from singalaut.contracts import Completion, Request
from singalaut.errors import SingalautError
from singalaut.generate.child import Parent
from singalaut.generate.engine import Engine, open_engine
from singalaut.generate.records import completion_record, request_of


class Replica:
    """An engine, and the requests that it has from the first process."""

    def __init__(self, engine: Engine, parent: Parent):
        self.engine, self.parent = engine, parent
        self._missing: dict[str, int] = {}  # answers that are still to come, by request
        self._stops = False

    def serve(self) -> NoReturn:
        """Answer until the pipe is closed, which ends the process."""
        while True:
            self._missing.clear()
            self._stops = False
            answers = self.engine.sample(self._requests())
            for completion in answers:
                self._send(completion)
                if self._stops:
                    break
            answers.close()

    def _requests(self) -> Iterator[Request | None]:
        """Requests as they come, None where there is none but work to go on with."""
        while not self._stops:
            message = self.parent.next(wait=not self._missing)
            if message is None:
                yield None
            elif message["do"] == "answer":
                request = request_of(message["request"])
                self._missing[request.id] = request.sampling.n
                yield request
            else:
                self._obey(message["do"])

    def _obey(self, what: str) -> None:
        if what == "stop":
            self._stops = True
        elif what == "sleep":
            self.engine.sleep()
        elif what == "count":
            self.parent.tell({"statistics": self.engine.statistics()})

    def _send(self, completion: Completion) -> None:
        name = completion.request_id
        self._missing[name] -= 1
        was_refused = completion.finish_reason == "error" and not completion.usage.prompt_tokens
        is_last = was_refused or not self._missing[name]
        if is_last:
            del self._missing[name]
        self.parent.tell({"completion": completion_record(completion), "last": is_last})


def main() -> None:
    parent = Parent()
    try:
        settings: dict[str, Any] | None = parent.next()
        assert settings is not None
        engine = open_engine(Path(settings.pop("directory")), **settings)
        parent.tell({"slots": engine.slots})
        Replica(engine, parent).serve()
    except SingalautError as error:
        print(str(error).replace("\n", ";"), flush=True)
    except BaseException:
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(1)  # what listens to the first process cannot be stopped


if __name__ == "__main__":
    main()
