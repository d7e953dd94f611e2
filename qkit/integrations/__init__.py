"""Other libraries that load what qkit made: transformers, and PEFT for adapters.

`import qkit` registers qkit with them, and imports neither: each is told as soon as it is there.
"""

import importlib.util
import sys
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

PLACES = {  # where a library keeps its table of methods, and who enters qkit there
    "transformers.quantizers.auto": "qkit.integrations.transformers",
    "qkit.integrations.transformers": "qkit.integrations.foreign",  # which is built on it
    "peft.tuners.lora.model": "qkit.integrations.peft",
}


class _WhenImported(MetaPathFinder):
    """Finds nothing itself. What the others find for one of the PLACES is followed by our registering there."""

    def find_spec(self, fullname: str, path=None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname not in PLACES:
            return None
        sys.meta_path.remove(self)  # while the others are asked
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            sys.meta_path.insert(0, self)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            import_module(
                PLACES[fullname]
            )  # registers at its end; if it is itself what imports the library, a little later

        spec.loader.exec_module = execute_and_register  # of this spec's own loader
        return spec


def register() -> None:
    """Register qkit with what is imported already, now, and with the rest when it is."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__name__ != _WhenImported.__name__]
    sys.meta_path.insert(0, _WhenImported())
    for place, ours in PLACES.items():
        if place in sys.modules:
            import_module(ours).register()


def __getattr__(name: str):
    """Import the integration that somebody asks for."""
    if name in ("transformers", "foreign", "peft"):
        return import_module(f"qkit.integrations.{name}")
    raise AttributeError(f"module 'qkit.integrations' has no attribute {name!r}")
