"""Typed settings: declared once, then checked, overridden, varied, saved and explained.

A section is a dataclass, or a Flax module, whose fields are settings (strings, numbers, true or
false, tuples of these), other sections, or tuples of sections. Nothing here knows any of them:
which sections there are is found by Python's own `__subclasses__`, so one of a stranger's is worth
as much as one of ours. 0 or an empty tuple switches a feature off.

Settings declared as `continuous` may be replaced by traced arrays inside a compiled program; that
is how members of a population differ without compiling again.
"""

from fmnist_jax.settings.checks import validate
from fmnist_jax.settings.fields import (
    Kind,
    Section,
    continuous,
    is_on,
    leaves,
    locations,
    replace,
    sections,
    setting,
    shown,
    unknown,
)
from fmnist_jax.settings.overrides import override, parse
from fmnist_jax.settings.saved import differences, from_json, kind_name, kinds, names, to_json
from fmnist_jax.settings.written import imports, source

__all__ = ['Kind', 'Section', 'continuous', 'differences', 'from_json', 'imports', 'is_on',
           'kind_name', 'kinds', 'leaves', 'locations', 'names', 'override', 'parse', 'replace',
           'sections', 'setting', 'shown', 'source', 'to_json', 'unknown', 'validate']
