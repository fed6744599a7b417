"""Broken input by the thousand, and what a refusal must look like."""

import copy
import json
import os
import random

import hypothesis
from hypothesis import strategies as st

# FMNIST_JAX_FUZZ=1000000 makes a campaign of every test that uses this.
SETTINGS = hypothesis.settings(
    max_examples=int(os.environ.get('FMNIST_JAX_FUZZ', '300')), deadline=None, database=None,
    suppress_health_check=list(hypothesis.HealthCheck))

# A seed, where hypothesis's own strategies would take most of the time; it prints the one that
# fails.
RANDOM = st.integers(0, 2**63 - 1).map(random.Random)

DEEP = '[' * 200 + ']' * 200
JUNK = (None, True, False, 0, -1, 7, 1.5, -0.0, 10**18, 10**400, -10**30, 1e308, 1e-320,
        float('nan'), float('inf'), '', 'x', 'a\nb', '\0', '\ud800', 'é', '../..', 'x' * 5000, [],
        [[]], [None], [1, 2], [10**400], {}, {'type': []}, {'type': 'MLP'}, {'': {}}, [0] * 1000,
        json.loads(DEEP))


def junk(chance):
  """A JSON value that a program may not expect; its own, which may be changed."""
  return copy.deepcopy(chance.choice(JUNK))


def text(chance):
  """A string that a program may not expect."""
  kind = chance.randrange(4)
  if kind == 0:
    return chance.choice([value for value in JUNK if isinstance(value, str)])
  if kind == 1:
    return json.dumps(junk(chance))
  alphabet = '0123456789-+.eE_,()[]' if kind == 2 else 'aN1.=-_/\\ \t\nü\ud800\U0001f455\u0661$%{'
  return ''.join(chance.choice(alphabet) for _ in range(chance.randrange(12)))


def mutated_bytes(chance, content):
  """`content` one to four small accidents away."""
  result = bytearray(content)
  for _ in range(chance.randint(1, 4)):
    at = chance.randrange(len(result) + 1)
    kind = chance.randrange(7)
    if kind == 0 and at < len(result):
      result[at] = chance.randrange(256)
    elif kind == 1 and at < len(result):
      result[at] ^= 1 << chance.randrange(8)
    elif kind == 2:
      del result[at:]
    elif kind == 3:
      result[at:at] = chance.randbytes(chance.randrange(9))
    elif kind == 4:
      result[at:at] = result[at:at + chance.randrange(200)]
    elif kind == 5:
      del result[at:at + chance.randint(1, 9)]
    else:
      token = chance.choice(['NaN', '1e999', '9' * 400, '9' * 5000, '[' * 3000, '{"":', '"', '\\',
                             '\n', '\r', '\n\n', 'null', '-', '.0', ','])
      result[at:at + chance.randrange(6)] = token.encode()
  return bytes(result)


def mutated_json(chance, value):
  """The text of `value`, a JSON value, with one to three of its parts replaced, lost or doubled."""
  value = json.loads(json.dumps(value))
  doubled = None
  for _ in range(chance.randint(1, 3)):
    parent, key = None, None
    node = value
    while isinstance(node, (dict, list)) and node and (parent is None or chance.random() < 0.8):
      parent, key = node, chance.choice(list(node) if isinstance(node, dict) else range(len(node)))
      node = node[key]
    if parent is None:
      return json.dumps(junk(chance)).encode()
    kind = chance.randrange(6)
    if kind == 0:
      del parent[key]
    elif kind == 1 and isinstance(parent, dict):
      parent[text(chance)] = parent.pop(key)
    elif kind == 2 and isinstance(parent, dict):
      doubled = key
    elif kind == 3 and isinstance(parent, list):
      parent.append(node)
    else:
      parent[key] = text(chance) if chance.random() < 0.1 else junk(chance)
  found = json.dumps(value)
  if doubled is not None:
    found = found.replace(f'{json.dumps(doubled)}:', f'{json.dumps(doubled)}: 3, '
                          f'{json.dumps(doubled)}:', 1)
  return found.encode()


def broken(chance, value):
  """A broken JSON file of `value`."""
  if chance.random() < 0.4:
    return mutated_bytes(chance, json.dumps(value).encode())
  return mutated_json(chance, value)


def assert_one_sentence(error, longest=1500):
  """What the user is told: one line of readable length."""
  message = str(error)
  assert message.endswith(('.', '?')) and '\n' not in message and len(message) < longest, message
