"""Several workers of a search: leases, a storage that is lost, kill -9, PostgreSQL."""

import contextlib
import json
import os
import pathlib
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import time

import optuna
import pytest

from fmnist_jax import command as command_lib
from fmnist_jax import config_file
from fmnist_jax.errors import ConfigError, WorkdirError
from fmnist_jax.search import Choice, Range, Space, board
from fmnist_jax.search import __main__ as search_main
from fmnist_jax.search.directories import Directories
from fmnist_jax.search.storage import Address
from fmnist_jax.storage import files
from fmnist_jax.storage.workdir import Workdir

RATES = Space({'optim.learning_rate': Range(1e-3, 1e-1, log=True)})
ROOT = pathlib.Path(__file__).parents[1]


def outcome(task, accuracy=0.5, ended='finished'):
  return {'params': task.params, 'ended': ended, 'message': '', 'worker': 'w', 'rungs': {},
          'seeds': [0], 'validation_accuracy': [[0.25, accuracy]], 'best_epochs': [2],
          'accuracies': [accuracy], 'accuracy': accuracy if ended == 'finished' else None,
          'seconds': 1.0}


class Clock:
  """Stands in for `time` in the board: each worker has its own, and they differ by years."""

  def __init__(self, now):
    self.now = now

  def monotonic(self):
    return self.now


@pytest.fixture(name='worker')
def _worker(tmp_path):
  opened = []
  def make(trials=3, storage=tmp_path / 'journal', lease=10.0, sampler='random', space=RATES):
    address = Address(str(storage))
    opened.append(address)
    study = optuna.create_study(study_name='study', storage=address.open(), load_if_exists=True,
                                direction='maximize', sampler=board.sampler_of(sampler))
    return board.Board(study, address, space, config_file.load('mlp'), trials, lease)
  yield make
  for address in opened:
    address.close()


def at(monkeypatch, now, look):
  """A worker looks at the others when its own clock shows `now`."""
  monkeypatch.setattr(board, 'time', Clock(now))
  look()


def test_a_worker_that_is_killed_loses_its_trial_to_another(worker, monkeypatch):
  dead, living = worker(), worker()
  dead.look()
  task = dead.ask()
  assert not dead.report(task, 1, 0.25)
  at(monkeypatch, 1e9, living.look)
  others = [living.ask(), living.ask()]
  assert living.ask() is None and not living.finished(), 'three are drawn, none is free'
  at(monkeypatch, 1e9 + 10, living.look)
  assert living.ask() is None, 'not for longer than the lease'
  at(monkeypatch, 1e9 + 10.1, living.look)
  taken = living.ask()
  assert (taken.member, taken.params) == (task.member, task.params)
  # Who was taken for dead notices, and nothing is told twice.
  with pytest.raises(board.Lost):
    dead.report(task, 2, 0.5)
  with pytest.raises(board.Lost):
    dead.tell(task, outcome(task, 0.9))
  for one in (taken, *others):
    living.tell(one, outcome(one))
  with pytest.raises(board.Lost):
    dead.tell(task, outcome(task, 0.9))
  assert living.finished() and dead.finished() and dead.ask() is None
  assert [one['accuracy'] for one in dead.outcomes().values()] == [0.5] * 3


def test_a_worker_that_gives_signs_of_life_keeps_its_trial(worker, monkeypatch):
  slow, other = worker(1), worker(1)
  task = slow.ask()
  for now in range(0, 100, 9):
    slow.look()
    at(monkeypatch, now, other.look)
  assert other.ask() is None
  slow.tell(task, outcome(task))
  assert other.finished()


def test_what_a_worker_gives_back_is_taken_at_once(worker):
  other = worker(1)
  with worker(1) as leaving:
    task = leaving.ask()
  assert other.ask().member == task.member


def test_of_two_that_put_a_trial_back_one_counts(worker):
  one, two = worker(1), worker(1)
  task = one.ask()
  one.let_go(task)
  for each in (one, two):  # Both saw that it is free, before either had put it back.
    each._enqueue(task.member, task.params)
  taken = one.ask()
  assert taken.member == task.member and two.ask() is None
  one.tell(taken, outcome(taken))
  assert two.ask() is None and two.finished() and len(two.outcomes()) == 1


def test_a_worker_that_died_while_it_asked_leaves_no_gap(worker, monkeypatch):
  dead, living = worker(1), worker(1)
  dead._study.ask()
  assert living.ask() is None, 'somebody is about to draw it'
  for now in (0, 11):
    at(monkeypatch, now, living.look)
  task = living.ask()
  living.tell(task, outcome(task))
  assert living.finished() and len(living.outcomes()) == 1


def test_who_loses_its_lease_while_it_asks_asks_again(worker, monkeypatch):
  slow, quick = worker(2), worker(2)
  draw, lost = Space.draw, []
  def suspended(self, config, trial):
    if not lost:
      lost.append(trial.number)
      for now in (0, 11):
        at(monkeypatch, now, quick.look)
    return draw(self, config, trial)
  monkeypatch.setattr(Space, 'draw', suspended)
  task = slow.ask()
  assert task.trial.number > lost[0] and slow.holds(task)


def test_a_grid_is_tried_once_by_all_together(worker, monkeypatch):
  space = Space({'optim': Choice('AdamW', 'SGD'), 'optim.momentum': Choice(0.5, 0.9),
                 'model.dropout': Choice(0.1, 0.2)})
  grid = space.grid(config_file.load('mlp'), 9)
  assert len(grid) == 6
  dead, *living = (worker(len(grid), sampler='grid', space=space) for _ in range(3))
  for one in living:  # As they start, before either has seen the other.
    for member, params in grid.items():
      one._enqueue(member, params)
  dead.ask()
  dead._study.ask()  # And it was killed before it had drawn.
  for now in (0, 11):
    at(monkeypatch, now, living[0].look)
  while tasks := [task for one in living if (task := one.ask())]:
    for one, task in zip(living, tasks):
      one.tell(task, outcome(task))
  done = living[0].outcomes()
  assert living[0].finished() and len(done) == 6
  assert sorted(str(one['params']) for one in done.values()) == sorted(map(str, grid.values()))


def test_no_more_are_drawn_than_asked_for(worker):
  workers = [worker(5) for _ in range(3)]
  tasks = [task for _ in range(4) for one in workers if (task := one.ask())]
  assert len(tasks) == 5 == len({task.member for task in tasks})
  assert worker(6).ask() is not None, 'going on with more'


@pytest.mark.parametrize('how', ['missing', 'emptied', 'torn', 'garbled', 'cut'])
def test_a_storage_that_is_lost_is_made_of_the_directories(worker, tmp_path, how):
  first = worker(4)
  places = Directories(tmp_path / 'trials', first.worker)
  tasks = [first.ask() for _ in range(3)]
  for task, ended in zip(tasks, ('finished', 'pruned', '')):
    places.open(task.member, task.params)
    first.report(task, 1, 0.25)
    if ended:
      assert places.close(task.member, outcome(task, ended=ended))
      first.tell(task, outcome(task, ended=ended))
  path, content = tmp_path / 'journal', (tmp_path / 'journal').read_bytes()
  if how == 'missing':
    path.unlink()
  else:
    path.write_bytes({'emptied': b'', 'torn': content[:-9],
                      'garbled': content.replace(b'\n{', b'\n#', 1),
                      'cut': content[:content.index(b'\n', len(content) // 2) + 1]}[how])
  second = worker(4)
  second.restore(*Directories(tmp_path / 'trials', second.worker).read())
  assert second.restore(*Directories(tmp_path / 'trials', second.worker).read()) == 0
  found = {}
  for now in (0, 11):  # What is still in the storage as leased lapses.
    clock, board.time = board.time, Clock(now)
    second.look()
    board.time = clock
  while (task := second.ask()) is not None:
    found[task.member] = task
    known = Directories(tmp_path / 'trials', second.worker).finished(task.member)
    second.tell(task, known or outcome(task))
  assert second.finished()
  done = second.outcomes()
  assert len(done) == 4 and {task.member for task in tasks} <= done.keys()
  assert [done[task.member]['ended'] for task in tasks] == ['finished', 'pruned', 'finished']
  assert done[tasks[2].member]['params'] == tasks[2].params, 'what was begun is gone on with'
  if how in ('missing', 'emptied', 'garbled'):
    assert len(found) == 2
  damaged = list(tmp_path.glob('journal.damaged-*'))
  assert len(damaged) == (how == 'garbled')


def test_a_line_that_was_cut_short_blocks_nobody(worker, tmp_path):
  one, two = worker(3), worker(3)
  one.ask()
  with open(tmp_path / 'journal', 'ab') as file:
    file.write(b'{"op_code": 5, "worker_id"')
  assert two.ask() is not None and one.ask() is not None
  assert all(json.loads(line) for line in (tmp_path / 'journal').read_bytes().splitlines())


def test_a_storage_removed_meanwhile_ends_the_worker_with_a_sentence(worker, tmp_path):
  one = worker()
  one.ask()
  (tmp_path / 'journal').unlink()
  with pytest.raises(WorkdirError, match='run the same command again'):
    one.ask()
  (tmp_path / 'journal').touch()
  with pytest.raises(WorkdirError, match='removed, emptied or replaced'):
    one.ask()


def test_a_directory_that_was_taken_over_is_no_place_to_write(tmp_path):
  slow, quick = Directories(tmp_path, 'aaa'), Directories(tmp_path, 'bbb')
  (slow.open('0001-ab', {'x': 1.0}) / 'seed-0').mkdir()
  path = quick.open('0001-ab', {'x': 1.0})
  assert [entry.name for entry in tmp_path.iterdir()] == ['0001-ab.bbb']
  assert (path / 'seed-0').is_dir(), 'it goes on with what is there'
  told = {'params': {'x': 1.0}, 'ended': 'finished', 'message': '', 'worker': 'bbb', 'rungs': {},
          'seeds': [], 'validation_accuracy': [], 'best_epochs': [], 'accuracies': [],
          'accuracy': 0.5, 'seconds': 0.0}
  assert not slow.close('0001-ab', told) and quick.close('0001-ab', told)
  assert slow.finished('0001-ab') == told == quick.read()[0]['0001-ab']
  (tmp_path / '0001-ab' / 'outcome.json').write_text('{"accuracy": 1}')
  with pytest.raises(WorkdirError, match=r'outcome.json is damaged'):
    quick.read()


def test_who_takes_a_trial_over_is_not_kept_out_by_who_had_it(tmp_path):
  slow, quick = Directories(tmp_path, 'aaa'), Directories(tmp_path, 'bbb')
  own = config_file.load('mlp')
  with contextlib.ExitStack() as stack:
    asleep = stack.enter_context(Workdir(slow.open('0001-ab', {'x': 1.0}) / 'seed-0', own))
    taken = stack.enter_context(Workdir(quick.open('0001-ab', {'x': 1.0}) / 'seed-0', own))
    taken.held()
    with pytest.raises(WorkdirError, match='nothing more is written'):
      asleep.held()


def test_of_what_others_have_left_that_is_taken_which_was_trained(tmp_path):
  (Directories(tmp_path, 'aaa').open('0001-ab', {'x': 1.0}) / 'seed-0').mkdir()
  for name in 'bcdefghi':  # A lost worker's file under way can make its folder again.
    (tmp_path / f'0001-ab.{name * 3}' / 'seed-0' / 'checkpoints').mkdir(parents=True)
  last = Directories(tmp_path, 'zzz')
  last.open('0001-ab', {'x': 1.0})
  assert not (tmp_path / '0001-ab.aaa').exists()
  assert not list((tmp_path / '0001-ab.zzz' / 'seed-0').iterdir())


def test_what_is_given_up_is_finished_before_its_checkpoints_go(tmp_path, worker, monkeypatch):
  places, task = Directories(tmp_path / 'trials', 'aaa'), worker(1).ask()
  (places.open(task.member, task.params) / 'seed-0' / 'checkpoints' / '20').mkdir(parents=True)
  def killed(*_, **__):
    raise KeyboardInterrupt
  monkeypatch.setattr(shutil, 'rmtree', killed)
  with pytest.raises(KeyboardInterrupt):
    places.close(task.member, outcome(task, ended='pruned'))
  # Half of its checkpoints would be none that anybody can go on from.
  assert places.finished(task.member)['ended'] == 'pruned'


def test_directories_are_read_while_others_take_them(tmp_path, monkeypatch):
  first, other = Directories(tmp_path, 'aaa'), Directories(tmp_path, 'bbb')
  first.open('0001-ab', {'x': 1.0})
  read = files.read_json
  def taken(path, *args, **kwargs):
    monkeypatch.setattr(files, 'read_json', read)
    other.open('0001-ab', {'x': 1.0})
    return read(path, *args, **kwargs)
  monkeypatch.setattr(files, 'read_json', taken)
  assert first.read() == ({}, {}), 'who has it tells the storage of it'
  assert first.read() == ({}, {'0001-ab': {'x': 1.0}})


@pytest.mark.parametrize(('text', 'says'), [
    ('sqlite:///search.db', 'SQLite is not for several workers: it locks'),
    ('mysql://u@h/d', 'begins with mysql://'),
    ('postgresql://u:hushhush@localhost:port/d', 'no address'),
    ('postgresql://u:hushhush@127.0.0.1:9/d?connect_timeout=2', 'cannot be reached'),
    ('/dev/null/journal', 'cannot be used as --storage'),
    (str(ROOT / 'setup.cfg'), 'is no journal of a search'),
])
def test_a_storage_that_cannot_be_used(text, says):
  with pytest.raises(ConfigError, match=says) as told:
    Address(text).open()
  assert 'hushhush' not in str(told.value)
  assert (ROOT / 'setup.cfg').read_text().startswith('[metadata]')


@pytest.mark.parametrize('text', ['postgresql://u:hushhush@h/d',
                                  'postgres://u@h/d?password=hushhush'])
def test_a_password_is_not_shown(text):
  address = Address(text)
  assert 'hushhush' not in address.shown and address.shown.startswith('postgres')
  assert 'hushhush' not in address.tame(ValueError('no user u with hushhush'))


# Programs.

SMALL = ('--config=smoke', '--config.data.train_examples=700', '--config.data.test_examples=60',
         '--config.data.validation_examples=100', '--config.data.batch_size=20',
         '--config.model.channels=4,4', '--config.train.epochs=3', '--sampler=random',
         '--range=optim.learning_rate=1e-3..1e-1:log', '--lease=2', '--at_once=1')


def start(tmp_path, *arguments, **environment):
  return subprocess.Popen(
      [sys.executable, '-m', 'fmnist_jax.search', *SMALL, *arguments], cwd=tmp_path, text=True,
      env={**os.environ, 'PYTHONPATH': str(ROOT), 'XLA_FLAGS': '', **environment},
      stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def check(directory, trials):
  """Every trial is there once, and the best is the best."""
  found = json.loads((directory / 'search.json').read_text())
  names = [trial['name'] for trial in found['trials']]
  assert len(names) == len(set(names)) == trials
  assert {path.name for path in (directory / 'trials').iterdir()} == set(names)
  drawn = [trial['params']['optim.learning_rate'] for trial in found['trials']]
  assert len(set(drawn)) == trials
  for trial in found['trials']:
    kept = json.loads((directory / 'trials' / trial['name'] / 'outcome.json').read_text())
    assert {**kept, 'name': trial['name']} | trial == {**kept, 'name': trial['name']}
    lines = (directory / 'trials' / trial['name'] / 'seed-0' / 'metrics.jsonl').read_text()
    curve = [json.loads(line)['validation_accuracy'] for line in lines.splitlines()]
    assert trial['validation_accuracy'] == [curve]
  best = max(trial['accuracy'] for trial in found['trials'] if trial['accuracy'] is not None)
  assert next(trial['accuracy'] for trial in found['trials']
              if trial['name'] == found['best']) == best
  return found


@pytest.mark.slow
def test_a_search_survives_kill_9_of_its_workers(tmp_path):
  chance = random.Random(0)
  arguments = ('--trials=8', '--workdir=run', '--pruner=none')
  workers = [start(tmp_path, *arguments) for _ in range(2)]
  try:
    for kill in (True, False, True, True):
      time.sleep(chance.uniform(3, 9))
      victim = chance.randrange(2)
      if kill:
        workers[victim].kill()
        workers[victim].communicate()
        workers[victim] = start(tmp_path, *arguments)
      else:  # Longer than its lease: the other one takes its trial, and it must let go.
        workers[victim].send_signal(signal.SIGSTOP)
        time.sleep(6)
        workers[victim].send_signal(signal.SIGCONT)
    said = [worker.communicate(timeout=900) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], said
  finally:
    for worker in workers:
      worker.kill()
      worker.communicate()
  check(tmp_path / 'run', 8)


@pytest.mark.slow
def test_a_signal_gives_trials_back_and_the_same_command_goes_on(tmp_path):
  process = start(tmp_path, '--trials=3', '--workdir=run', '--config.train.epochs=30')
  while not list(tmp_path.glob('run/trials/*/seed-0/metrics.jsonl')):
    assert process.poll() is None
    time.sleep(0.05)
  process.send_signal(signal.SIGTERM)
  _, err = process.communicate(timeout=300)
  assert process.returncode == 143 and 'Interrupted by SIGTERM.' in err
  begun, = tmp_path.glob('run/trials/*')
  process = start(tmp_path, '--trials=3', '--workdir=run', '--config.train.epochs=30')
  assert process.communicate(timeout=900)[1] == '' and process.returncode == 0
  found = check(tmp_path / 'run', 3)
  assert found['trials'][0]['name'] == begun.name.partition('.')[0]


@pytest.fixture(name='database', scope='module')
def _database(tmp_path_factory):
  """The address of a database of a PostgreSQL of its own, on loopback, with a password."""
  folders = [*sorted(pathlib.Path('/usr/lib/postgresql').glob('*/bin'))[::-1],
             *map(pathlib.Path, os.environ['PATH'].split(os.pathsep))]
  bin_ = next((folder for folder in folders if (folder / 'pg_ctl').exists()
               and (folder / 'initdb').exists()), None)
  if bin_ is None:
    pytest.skip('PostgreSQL is not installed: there are no initdb and pg_ctl.')
  user, folder = {}, tmp_path_factory.mktemp('postgres')
  if os.getuid() == 0:  # Which PostgreSQL refuses to run as.
    for name in ('postgres', 'nobody'):
      try:
        found = pwd.getpwnam(name)
      except KeyError:
        continue
      user = {'user': found.pw_uid, 'group': found.pw_gid, 'extra_groups': []}
      break
    else:
      pytest.skip('PostgreSQL does not run as root, and there is no user postgres or nobody.')
    # It must get at its folder, which pytest makes for us alone.
    folder = pathlib.Path(f'/tmp/fmnist_jax-postgres-{os.getpid()}')
    folder.mkdir()
    os.chown(folder, user['user'], user['group'])
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  run = lambda *command: subprocess.run(command, check=True, cwd=folder, capture_output=True,
                                        text=True, env={'PATH': '/usr/bin:/bin', 'LC_ALL': 'C'},
                                        **user)
  try:
    try:
      secret = folder / 'secret'
      secret.write_text('hushhush')
      secret.chmod(0o644)
      run(bin_ / 'initdb', '-D', folder / 'data', '-U', 'searcher', '-A', 'scram-sha-256',
          f'--pwfile={secret}')
      run(bin_ / 'pg_ctl', '-D', folder / 'data', '-w', '-l', folder / 'log', 'start', '-o',
          f'-h 127.0.0.1 -p {port} -c unix_socket_directories= -c fsync=off')
    except subprocess.CalledProcessError as error:
      pytest.skip(f'PostgreSQL does not start here: {error.stderr.strip()[-200:]}')
    yield f'postgresql://searcher@127.0.0.1:{port}/postgres'
    run(bin_ / 'pg_ctl', '-D', folder / 'data', '-m', 'immediate', 'stop')
  finally:
    shutil.rmtree(folder, ignore_errors=True)


def test_leases_in_postgresql(database, worker, monkeypatch):
  monkeypatch.setenv('PGPASSWORD', 'hushhush')
  dead, living = worker(2, database), worker(2, database)
  task = dead.ask()
  dead.report(task, 1, 0.25)
  for now in (0, 11):
    at(monkeypatch, now, living.look)
  taken = living.ask()
  assert (taken.member, taken.params) == (task.member, task.params)
  with pytest.raises(board.Lost):
    dead.tell(task, outcome(task))
  other = dead.ask()
  living.tell(taken, outcome(taken))
  dead.tell(other, outcome(other, ended='pruned'))
  assert living.finished() and len(living.outcomes()) == 2


@pytest.mark.slow
def test_two_workers_at_postgresql_that_share_no_disk(database, tmp_path):
  arguments = ('--trials=8', '--workdir=run', '--pruner=none')
  secret = database.replace('searcher@', 'searcher:hushhush@')
  places = [tmp_path / 'one', tmp_path / 'two']
  for place in places:
    place.mkdir()
  workers = [start(places[0], *arguments, f'--storage={database}', PGPASSWORD='hushhush'),
             start(places[1], *arguments, f'--storage={secret}')]
  said = [worker.communicate(timeout=900) for worker in workers]
  assert [worker.returncode for worker in workers] == [0, 0], said
  found = [json.loads((place / 'run' / 'search.json').read_text()) for place in places]
  assert found[0]['trials'] == found[1]['trials'] and len(found[0]['trials']) == 8
  here = [{path.name for path in (place / 'run' / 'trials').iterdir()} for place in places]
  assert not here[0] & here[1] and len(here[0] | here[1]) == 8 and all(here)
  kept = [path for place in places for path in place.rglob('*') if path.is_file()]
  assert 'hushhush' not in ''.join(map(''.join, said))
  assert not [path for path in kept if b'hushhush' in path.read_bytes()]
  # A database that was emptied is filled again by each of its own.
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('PGPASSWORD', 'hushhush')
    address = Address(database)
    storage = address.open()
    for study in storage.get_all_studies():
      storage.delete_study(study._study_id)
    address.close()
  for place in places:
    again = start(place, *arguments, f'--storage={database}', PGPASSWORD='hushhush')
    out, err = again.communicate(timeout=900)
    assert again.returncode == 0, err
  assert 'lacked' in out
  final = json.loads((places[1] / 'run' / 'search.json').read_text())
  assert {trial['name'] for trial in final['trials']} >= here[1]


@pytest.mark.parametrize(('arguments', 'says'), [
    (['--trials=0'], 'error: --trials is 0; it must be at least 1.'),
    (['--trails=3'], 'error: There is no option --trails=3; did you mean --trials?'),
    (['--lease=0'], 'error: --lease is 0; it must be at least 1'),
    (['--sampler=tp'], "error: --sampler is 'tp'; it must be one of tpe, random, grid"),
    (['--pruner=medan'], "error: --pruner is 'medan'; it must be one of median, halving"),
    (['--sampler=grid'], 'error: --sampler=grid tries every combination of choices, but optim.'),
    (['--space=nowhere'], 'error: There is no space nowhere; give a path, or one of the shipped'),
    (['--config.data.validation_examples=0', '--config.train.early_stopping_patience=0'],
     'error: A search compares trials by validation data'),
    (['--storage=sqlite:///x'], 'error: SQLite is not for several workers'),
    (['--range=optim.learning_rates=1..2'], "error: There is no config field 'optim.learn"),
])
def test_a_mistake_is_told_in_one_sentence(monkeypatch, capsys, tmp_path, arguments, says):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, 'argv', ['search', '--config=smoke', '--workdir=run',
                                    '--range=optim.learning_rate=1e-3..1e-1', *arguments])
  with pytest.raises(SystemExit) as left:
    command_lib.run(search_main.main)
  assert left.value.code == 1
  err = capsys.readouterr().err
  assert err.startswith(says) and err.count('\n') == 1
  assert not list(tmp_path.iterdir())
