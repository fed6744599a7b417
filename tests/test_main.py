"""The command line as a user meets it: in a process of its own."""

import configparser
import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
import runs

from fmnist_jax import __main__, command, config_file, evaluate, main
from fmnist_jax.errors import ConfigError
from fmnist_jax.storage import workdir as workdir_lib

TINY = ['--config=configs/smoke.py', '--config.data.train_examples=400',
        '--config.data.test_examples=60', '--config.data.validation_examples=100',
        '--config.train.steps_per_dispatch=2']


def start(arguments, cwd, module='fmnist_jax.main', **environment):
  root = pathlib.Path(__file__).parents[1]
  env = {**os.environ, 'PYTHONPATH': str(root), 'XLA_FLAGS': '', **environment}
  return subprocess.Popen([sys.executable, '-m', module, *arguments], cwd=cwd, env=env, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def run(arguments, cwd, **how):
  process = start(arguments, cwd, **how)
  out, err = process.communicate(timeout=300)
  return process.returncode, out, err


@pytest.fixture(name='called')
def _called(tmp_path, monkeypatch, capsys):
  """`run` in this process, which saves the start of one."""
  def call(arguments, program=main.main):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['fmnist-jax', *arguments])
    with pytest.raises(SystemExit) as left:
      command.run(program)
    return left.value.code, *capsys.readouterr()
  return call


def test_overrides_are_separated_from_options():
  rest, overrides = command.split_overrides(
      ['--config=a.py', '--config.train.epochs=3', '--config.train.seed', '4', '--workdir', 'w'])
  assert rest == ['--config=a.py', '--workdir', 'w']
  assert overrides == ['train.epochs=3', 'train.seed=4']
  with pytest.raises(ConfigError, match=r'needs a value'):
    command.split_overrides(['--config.train.seed'])


def test_the_default_workdir_is_named_after_the_config():
  assert main.parse(['--config=configs/mlp.py'])[0].workdir == pathlib.Path('runs/mlp')


@pytest.mark.slow
def test_a_run_from_outside_the_checkout_and_its_evaluation(tmp_path):
  code, out, err = run(TINY, tmp_path)
  assert code == 0, err
  assert err == '', 'a good run warns of nothing'
  for part in ('synthetic: 300 training', 'Conv_0', 'total', 'epoch 1/3', 'Ankle boot',
               'test accuracy', 'report.html'):
    assert part in out
  workdir = tmp_path / 'runs' / 'smoke'
  assert {path.name for path in workdir.iterdir()} >= {
      'config.json', 'metrics.jsonl', 'checkpoints', 'results.json', 'predictions.npz', 'report'}
  code, out, err = run(TINY, tmp_path)
  assert (code, err) == (0, '') and 'is finished' in out
  code, out, err = run(['--workdir=runs/smoke', '--split=validation'], tmp_path,
                       module='fmnist_jax.evaluate')
  assert (code, err) == (0, '') and 'precision' in out
  found = json.loads((workdir / 'results-validation-best.json').read_text())
  assert found['examples'] == 100


def test_a_mistake_ends_a_process_with_one_sentence(tmp_path):
  code, out, err = run([*TINY, '--config.data.batch_size=4000'], tmp_path)
  assert code == 1 and err.startswith('error: ') and 'batch_size' in err
  assert err.count('\n') == 1 and 'Traceback' not in out + err


@pytest.mark.parametrize(('arguments', 'says'), [
    (['--config=nope.py'], 'There is no config file nope.py'),
    (['--config.train.epoch=3'], "did you mean 'train.epochs'"),
    (['--config.train.epochs=three'], 'whole number'),
    (['--wrkdir=x'], 'There is no option --wrkdir=x'),
    (['--coordinator=localhost:1234'], 'need all of --coordinator'),
    (['--coordinator=localhost:1', '--processes=2', '--process=2'], 'the last 1'),
    ([*TINY, '--workdir=/proc/nothing'], 'cannot be used'),
    ([*TINY, '--workdir=file'], 'is not a directory'),
    ([*TINY, '--workdir=foreign'], 'holds files but no run'),
    ([*TINY, '--config.data.name=mnist', '--config.data.data_dir=foreign'], 'foreign'),
    ([*TINY, '--config.model.padding=VALID', '--config.model.kernel=13'], 'leaves no pixel'),
    ([*TINY, '--config.data.batch_size=4000'], 'batch_size'),
])
def test_a_mistake_gets_one_sentence_and_leaves_nothing(tmp_path, called, arguments, says):
  (tmp_path / 'file').write_text('x')
  (tmp_path / 'foreign').mkdir()
  (tmp_path / 'foreign' / 'thesis.tex').write_text('x')
  code, out, err = called(arguments)
  assert code == 1 and says in err
  assert err.startswith('error: ') and err.count('\n') == 1 and 'Traceback' not in out + err
  assert not list(tmp_path.glob('runs/*/checkpoints')) + list(tmp_path.glob('runs/*/results.json'))


def test_help_explains_every_field(called):
  code, out, _ = called(['--help', '--config=configs/mlp.py'])
  assert code == 0
  for part in ('--workdir', '--config.optim.learning_rate=', 'peak learning rate',
               '--config.model.hidden=128', 'goes on where the last'):
    assert part in out


def test_all_commands_have_one_name_too(tmp_path, called):
  config = configparser.ConfigParser()
  config.read(pathlib.Path(__file__).parents[1] / 'setup.cfg')
  assert config['options.entry_points']['console_scripts'].strip() == (
      'fmnist-jax = fmnist_jax.__main__:main')
  code, out, err = run(['train', '--config=smoke', '--help'], tmp_path, module='fmnist_jax')
  assert (code, err) == (0, '') and '--config.optim.learning_rate=' in out
  for name, argument in (('evaluate', '--split'), ('predict', '--format'),
                         ('population', '--seeds'),
                         ('compare', '--output'), ('export', '--checkpoint')):
    code, out, err = called([name, '--help'], __main__.dispatch)
    assert (code, err) == (0, '') and argument in out
  code, out, err = called([], __main__.dispatch)
  assert code == 0 and 'train|evaluate|predict|population|search|compare|export' in out
  code, out, err = called(['tarin'], __main__.dispatch)
  assert code == 1 and err == ('error: There is no command tarin; the commands are train, '
                               'evaluate, predict, population, search, compare, export.\n')


def test_a_reader_that_leaves_gets_no_traceback(tmp_path):
  with start(['--help'], tmp_path) as process:
    process.stdout.close()
    assert process.stderr.read() == '' and process.wait() == 141


@pytest.mark.slow
@pytest.mark.parametrize(('number', 'code'), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_leaves_and_the_next_start_goes_on(tmp_path, number, code):
  arguments = [*TINY, '--config.train.epochs=400', '--config.train.early_stopping_patience=0']
  process = start(arguments, tmp_path, PYTHONUNBUFFERED='1')
  for line in process.stdout:
    if line.split()[:2] == ['epoch', '3/400']:
      break
  time.sleep(0.1)
  process.send_signal(number)
  _, err = process.communicate(timeout=60)
  assert process.returncode == code, err
  assert 'Traceback' not in err
  epochs = len((tmp_path / 'runs/smoke/metrics.jsonl').read_text().splitlines())
  assert epochs >= 3
  assert not (tmp_path / 'runs/smoke/results.json').exists()
  process = start(arguments, tmp_path, PYTHONUNBUFFERED='1')
  first = next(line for line in process.stdout if line.startswith('epoch '))
  process.kill()
  process.communicate()
  assert first.split()[1] == f'{epochs + 1}/400'


@pytest.mark.slow
def test_killed_again_and_again_a_run_ends_with_the_same_bits(tmp_path):
  arguments = [*TINY, '--config.train.epochs=6', '--config.train.early_stopping_patience=3']
  code, _, err = run([*arguments, '--workdir=whole'], tmp_path)
  assert code == 0, err
  kills = 0
  # From outside and at any time: while it imports, compiles, trains, saves, evaluates or draws.
  for delay in itertools.chain([0.5, 1.5], itertools.count(2.5, 0.4)):
    process = start([*arguments, '--workdir=killed'], tmp_path)
    try:
      _, err = process.communicate(timeout=delay)
      break
    except subprocess.TimeoutExpired:
      process.kill()
      process.communicate()
      kills += 1
  assert process.returncode == 0, err
  assert kills >= 4
  runs.assert_same_run(tmp_path / 'whole', tmp_path / 'killed')
  assert not list((tmp_path / 'killed').rglob('.*partial*'))
  assert not list((tmp_path / 'killed').glob('checkpoints/.*'))


def test_a_workdir_in_use_is_told_with_the_process_that_uses_it(tmp_path):
  with workdir_lib.Workdir(tmp_path / 'w', config_file.load('smoke')):
    code, out, err = run([*TINY, '--workdir=w'], tmp_path)
  assert code == 1 and err.startswith(f'error: w is in use by process {os.getpid()} on ')
  assert err.count('\n') == 1 and 'Traceback' not in out + err


def test_what_is_printed_may_be_no_text():
  code = 'from fmnist_jax import command\ncommand.run(lambda _: print("runs/\\udcff"))\n'
  root = pathlib.Path(__file__).parents[1]
  process = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                           env={**os.environ, 'PYTHONPATH': str(root), 'PYTHONIOENCODING': 'utf-8'})
  assert (process.returncode, process.stdout, process.stderr) == (0, 'runs/\\udcff\n', '')


@pytest.mark.parametrize(('arguments', 'says'), [
    (['--workdir'], 'error: Argument --workdir: expected one argument; see --help.'),
    (['--work=x'], 'error: There is no option --work=x'),
    (['--config=.'], 'error: There is no config file .; give'),
    (['--config=' + 'x' * 5000], 'error: There is no config file xxx'),
    (['--config.train.epochs=1\n2'], r"error: train.epochs is '1\n2'; it must be a whole number."),
    (['--config=a\nb'], r'error: There is no config file a\nb; give'),
])
def test_arguments_are_refused_in_one_line(called, arguments, says):
  code, _, err = called(arguments)
  assert code == 1 and err.startswith(says) and err.count('\n') == 1


@pytest.mark.parametrize(('arguments', 'says'), [
    ([], 'The following arguments are required: --workdir; see --help.'),
    (['--workdir=x', '--split=train'], "Argument --split: invalid choice: 'train'"),
    (['--workdir=x', '--step=3'], 'There is no option --step=3; see --help.'),
    (['--wrkdir=x'], 'There is no option --wrkdir=x; did you mean --workdir?'),
    (['x', '--workdir=x'], 'Unrecognized arguments: x; see --help.')])
def test_arguments_of_evaluate_are_refused_in_one_sentence(arguments, says):
  with pytest.raises(ConfigError) as caught:
    evaluate.main(None, arguments)
  assert str(caught.value).startswith(says)
