"""Two processes of one run on loopback, and strangers who find the coordinator's port."""

from __future__ import annotations

import contextlib
import pathlib
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import same
import watch
from campaign import Campaign

_ARGUMENTS = (*watch.RUN, '--config.train.epochs=4', '--config.train.checkpoint_every_seconds=0.1',
              '--config.data.batch_size=100', '--config.evaluate.batch_size=20')
_LIMIT = 300  # Seconds of two processes; jax gives up one that is gone after 100.
_ATTEMPTS = 500  # Connections that a stranger makes at most.


def _noise(chance: random.Random) -> bytes:
  return chance.randbytes(chance.randrange(1, 5000))


def _http(chance: random.Random) -> bytes:
  return b'GET /%d HTTP/1.1\r\nHost: localhost\r\n\r\n' % chance.randrange(1000)


def _http2(chance: random.Random) -> bytes:
  # The greeting of the protocol that is spoken there, then frames of no sense.
  frames = b''.join(length.to_bytes(3, 'big') + chance.randbytes(6) + chance.randbytes(length)
                    for length in (chance.randrange(200) for _ in range(10)))
  return b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n' + bytes(9) + frames


def _nothing(chance: random.Random) -> bytes:
  del chance
  return b''


STRANGERS: dict[str, Callable[[random.Random], bytes]] = {
    'noise': _noise, 'HTTP': _http, 'HTTP/2 without sense': _http2,
    'connections that say nothing': _nothing}


def disturb(campaign: Campaign, repeats: int) -> None:
  """Each kind of stranger `repeats` times, as many kills of either process, and a taken port."""
  whole = campaign.watcher.work / 'network-whole'
  notes = campaign.records('network')
  if not notes:
    shutil.rmtree(whole, ignore_errors=True)
    codes, said = _both(campaign, whole)
    if any(codes):
      raise RuntimeError(f'An uninterrupted run of two processes failed: {said}')
  expected = same.outcome(whole)
  done = {(note['kind'], note['number']) for note in notes}
  kinds = [*STRANGERS, 'kill -9 of process 0', 'kill -9 of process 1', 'a second run on the port',
           'another address of this machine']
  for number in range(repeats):
    for kind in kinds:
      if (kind, number) not in done:
        note = {'kind': kind, 'number': number, **_trial(campaign, kind, number, expected)}
        campaign.note('network', note)
        print(f'network, {kind} {number}: {"; ".join(note["wrong"]) or "as promised"}', flush=True)


def _trial(campaign: Campaign, kind: str, number: int, expected: dict[str, Any]) -> dict[str, Any]:
  chance = random.Random(f'{kind} {number}')
  workdir = campaign.watcher.work / 'network'
  shutil.rmtree(workdir, ignore_errors=True)
  seen: dict[str, Any] = {'connections': 0, 'wrong': []}

  def visit(both: list[subprocess.Popen], port: int) -> None:
    _listening(port, both)
    if kind in STRANGERS:
      seen['connections'] = _talk(STRANGERS[kind], both, port, chance)
    elif kind.startswith('kill'):
      time.sleep(chance.random() * 8)
      both[int(kind[-1])].kill()
    elif kind.startswith('a second'):
      second = _start(campaign, workdir.with_name('network-second'), port, 0)
      said = second.communicate(timeout=_LIMIT)[1]
      if second.returncode != 1 or 'cannot be listened on' not in said or said.count('\n') != 1:
        seen['wrong'].append(f'the second run: exit code {second.returncode}, {said[-1000:]}')
    else:
      with contextlib.suppress(ConnectionRefusedError):
        socket.create_connection(('127.0.0.2', port), 5).close()
        seen['wrong'].append('it listens on 127.0.0.2, which nobody named')

  codes, said = _both(campaign, workdir, visit)
  if kind.startswith('kill'):
    # The other one has to end too, and the same command goes on where they were.
    if 0 in codes and codes != [0, 0] and not (workdir / 'results.json').exists():
      seen['wrong'].append(f'exit codes {codes} of an unfinished run')
    seen['wrong'] += same.unreadable(workdir)
    codes, said = _both(campaign, workdir)
  if kind in STRANGERS and not seen['connections']:
    seen['wrong'].append('nobody could connect')
  if any(codes):
    seen['wrong'].append(f'exit codes {codes}: {said[-2000:]}')
  else:
    seen['wrong'] += same.differences(expected, same.outcome(workdir))
  return seen


def _both(campaign: Campaign, workdir: pathlib.Path,
          visit: Callable[[list[subprocess.Popen], int], None] = lambda both, port: None,
          ) -> tuple[list[int], str]:
  """Exit codes of both processes, and what they said, while `visit` does what it does."""
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    port = probe.getsockname()[1]
  both = [_start(campaign, workdir, port, index) for index in range(2)]
  try:
    visit(both, port)
    said = ''.join(process.communicate(timeout=_LIMIT)[1] for process in both)
    return [process.returncode for process in both], said
  except subprocess.TimeoutExpired:
    return [-1, -1], f'it was not over after {_LIMIT} s'
  finally:
    for process in both:
      process.kill()
      process.wait()


def _start(campaign: Campaign, workdir: pathlib.Path, port: int, index: int) -> subprocess.Popen:
  return subprocess.Popen(
      [sys.executable, '-m', 'fmnist_jax.main', *_ARGUMENTS, f'--workdir={workdir}',
       f'--coordinator=localhost:{port}', '--processes=2', f'--process={index}'],
      cwd=campaign.watcher.work, text=True, env=campaign.watcher.environment('data', 'cache'),
      stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def _listening(port: int, both: list[subprocess.Popen]) -> None:
  """Waits until process 0 listens, or one of both has ended; connects to nothing."""
  wanted = f':{port:04X} '
  while all(process.poll() is None for process in both):
    # An address of version 4 may be listed as one of version 6. 0A: it listens.
    for table in ('tcp', 'tcp6'):
      lines = pathlib.Path(f'/proc/net/{table}').read_text().splitlines()[1:]
      if any(wanted in line.split()[1] + ' ' and line.split()[3] == '0A' for line in lines):
        return
    time.sleep(0.02)


def _talk(says: Callable[[random.Random], bytes], both: list[subprocess.Popen], port: int,
          chance: random.Random) -> int:
  """Connects again and again while both are at work, some stay; how many connections there were."""
  kept: list[socket.socket] = []
  count = 0
  try:
    while count < _ATTEMPTS and all(process.poll() is None for process in both):
      with contextlib.suppress(OSError):  # Whoever listens there may leave at any time.
        connection = socket.create_connection(('127.0.0.1', port), 5)
        kept.append(connection)
        count += 1
        connection.sendall(says(chance))
        if chance.random() < 0.7:
          kept.pop().close()
      time.sleep(0.02)
  finally:
    for connection in kept:
      connection.close()
  return count
