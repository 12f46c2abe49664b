"""What an annotator still lacks here. Light to import: a plan asks this of every annotator."""

import os
from importlib.util import find_spec

from estner_assets.llm.weights import missing_weights
from estner_assets.settings import Annotator, LlamaCppAnnotator

_ENVIRONMENT = ("endpoint_env", "base_url_env", "api_key_env")


def missing_configuration(annotator: Annotator) -> str | None:
    """Say what has to be set or installed before this annotator can work; ``None`` when it is ready."""
    names = [name for name in (getattr(annotator, field, None) for field in _ENVIRONMENT) if name]
    unset = [name for name in names if not os.environ.get(name)]
    if unset:
        return "set the environment variable " + " and ".join(unset)
    if isinstance(annotator, LlamaCppAnnotator):
        if find_spec("xllamacpp") is None:
            return "install the local LLM runtime: pip install xllamacpp"
        return missing_weights(annotator.weights)
    return None
