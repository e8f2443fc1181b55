"""Imported once by the fork server: everything heavy that workers would else load each."""

import pipelines.engines.stages
from pipelines.scan import warm_up

warm_up()

__all__ = ["pipelines"]
