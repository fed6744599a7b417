"""What each part of a recipe brings, alone, and what it costs; see README.md.

`run.py` trains; `run.py --timing`, on a machine that does nothing else, measures seconds an epoch.
Both write the table once all parts are trained.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import numpy as np
import record

from fmnist_jax import config as config_lib
from fmnist_jax import config_file, evaluation, machine, metrics, train, views
from fmnist_jax.config import (
    SAM,
    AlternatingFlip,
    Augmentation,
    Config,
    CrossEntropy,
    CutMix,
    Distillation,
    Flip,
    Lookahead,
    MixUp,
    Muon,
    RandAugment,
    RandomErasing,
    Shift,
)
from fmnist_jax.equipment import Equipment
from fmnist_jax.errors import ConfigError
from fmnist_jax.population import summary
from fmnist_jax.programs import hyper_arrays
from fmnist_jax.storage import files

STEPS, ROUNDS = 96, 5  # Of a measurement of time.


class Part(NamedTuple):
  """A part of a recipe, measured against the baseline.

  Attributes:
    name: of it, in the table.
    source: where it is from.
    change: the baseline's config -> one with the part; or, of a part that the baseline has, one
      without it. None: the baseline's own runs, looked at in another way.
    taken_away: whether the baseline has the part.
    tta: views that the runs are measured with.
  """
  name: str
  source: str
  change: Callable[[Config], Config] | None = None
  taken_away: bool = False
  tta: tuple[str, ...] = ()


def setting(**values: Any) -> Callable[[Config], Config]:
  """Settings by name, with __ for dots."""
  return lambda config: config_lib.replace(
      config, {name.replace('__', '.'): value for name, value in values.items()})


def also(*augmentations: Augmentation) -> Callable[[Config], Config]:
  """Augmentations after those there are; one of a kind that is there takes its place."""
  def change(config: Config) -> Config:
    kinds = tuple(map(type, augmentations))
    kept = tuple(one for one in config.data.augment if not isinstance(one, kinds))
    return config_lib.replace(config, {'data.augment': kept + augmentations})
  return change


def without(kind: type) -> Callable[[Config], Config]:
  """No augmentation of a kind."""
  return lambda config: config_lib.replace(config, {'data.augment': tuple(
      one for one in config.data.augment if not isinstance(one, kind))})


def alternating(config: Config) -> Config:
  """The flip in its place, or a new one before all others."""
  return config_lib.replace(config, {'data.augment': (
      AlternatingFlip(), *without(Flip)(config).data.augment)})


def larger(times: int) -> Callable[[Config], Config]:
  """Batches so many times as large; the learning rate grows as their root does (arXiv:1802.09568).
  """
  def change(config: Config) -> Config:
    rate = config.optim.learning_rate * math.sqrt(times)  # type: ignore[attr-defined]
    return config_lib.replace(config, {'data.batch_size': config.data.batch_size * times,
                                       'optim.learning_rate': rate})
  return change


def muon(config: Config) -> Config:
  """Kernels by Muon, which pulls at them as the baseline's decay does; the rest as it was."""
  before: Any = config.optim
  own = Muon(schedule=before.schedule, adam_learning_rate=before.learning_rate)
  decay = getattr(before, 'weight_decay', 0.0) * before.learning_rate / own.learning_rate
  return config_lib.replace(config, {'optim': dataclasses.replace(own, weight_decay=decay)})


def parts(config: Config) -> dict[str, Part]:
  """All parts, by a short name, for a baseline."""
  has = lambda kind: any(isinstance(one, kind) for one in config.data.augment)
  loss: Any = config.loss
  averaged, smoothed = bool(config.train.ema_decay), bool(loss.label_smoothing)
  found = {
      'muon': Part('Muon', 'Jordan 2024', muon),
      'alternating_flip': Part('alternating flip, in place of a random one', 'arXiv:2404.00498',
                               alternating),
      'tta_flip': Part('test-time augmentation: flip', 'arXiv:1409.1556', tta=('flip',)),
      'tta_shift': Part('test-time augmentation: shift', 'arXiv:1409.1556', tta=('shift',)),
      'tta_both': Part('test-time augmentation: both', 'arXiv:2404.00498', tta=('flip', 'shift')),
      'label_smoothing': Part('label smoothing', 'arXiv:1512.00567',
                              setting(loss__label_smoothing=0.0 if smoothed else 0.1),
                              taken_away=smoothed),
      'mixup': Part('MixUp 0.2', 'arXiv:1710.09412', also(MixUp())),
      'cutmix': Part('CutMix 1', 'arXiv:1905.04899', also(CutMix())),
      'random_erasing': Part('random erasing 0.25', 'arXiv:1708.04896', also(RandomErasing())),
      'rand_augment': Part('RandAugment 2, 3', 'arXiv:1909.13719', also(RandAugment())),
      'crop': Part('random crop, padded by 2', 'arXiv:1512.03385', also(Shift(2))),
      'sam': Part('SAM 0.05', 'arXiv:2010.01412',
                  lambda config: config_lib.replace(config, {'optim': SAM(base=config.optim)})),
      'lookahead': Part('Lookahead 5, 0.5', 'arXiv:1907.08610', lambda config: config_lib.replace(
          config, {'optim': Lookahead(base=config.optim)})),
      'bias_rate': Part('biases learn at 4 times the rate', 'arXiv:2404.00498',
                        setting(optim__bias_rate=4.0)),
      'batch_2': Part('batches twice as large', 'arXiv:1802.09568', larger(2)),
      'batch_4': Part('batches four times as large', 'arXiv:1802.09568', larger(4)),
      'ema': Part('moving average of weights', 'Polyak 1992',
                  setting(train__ema_decay=0.0 if averaged else 0.999), taken_away=averaged),
      'flip': Part('random flip', 'arXiv:1512.03385',
                   without(Flip) if has(Flip) else also(Flip()), taken_away=has(Flip)),
      'distillation': Part('distillation from the ensemble of the baseline\'s runs',
                           'arXiv:1503.02531', lambda config: config),
  }
  return found


def asked(config: Config, args: argparse.Namespace) -> dict[str, Part]:
  """The parts that `--parts` names, or all."""
  known = parts(config)
  return {short: known[short] for short in record.chosen(args.parts, list(known), 'part')}


def baseline(experiment: record.Experiment) -> Config:
  """The config that `--config` names, measured on validation images."""
  args = experiment.args
  changes: dict[str, Any] = {'data.data_dir': args.data_dir, 'evaluate.split': 'validation'}
  changes |= record.QUICK if args.quick else {}
  changes |= {'train.epochs': args.epochs} if args.epochs else {}
  config = config_lib.replace(config_file.load(args.config), changes)
  if not isinstance(config.loss, CrossEntropy):
    raise ConfigError(f'{args.config} has another loss than CrossEntropy.')
  if not hasattr(config.optim, 'bias_rate'):
    raise ConfigError(f'{args.config} has an optimiser that wraps another, or Muon; the parts are '
                      'measured against SGD, Adam or AdamW.')
  return config_lib.validate(config)


def name_of(config: Config, args: argparse.Namespace) -> str:
  """Of the folder of what was trained against a baseline."""
  return f'recipe_parts/{config_file.default_name(args.config)}-{config.train.epochs}'


class Scores(NamedTuple):
  """Accuracy and loss on validation images after the last epoch, one entry a seed."""
  accuracy: list[float]
  loss: list[float]


def scores(runs: list[Any], tta: tuple[str, ...]) -> Scores:
  """Of finished runs: no epoch is chosen, so that validation images have not chosen any."""
  if not tta:
    last = [run.history[-1] for run in runs]
    return Scores([entry['validation_accuracy'] for entry in last],
                  [entry['validation_loss'] for entry in last])
  found = []
  for run in runs:
    path = run.path / evaluation.results_name('validation', 'latest', tta)
    found.append(files.read_json(path) if path.exists() else evaluation.evaluate_run(
        run.path, 'validation', 'latest', tta=tta))
  return Scores([entry['accuracy'] for entry in found], [entry['loss'] for entry in found])


def trained(experiment: record.Experiment, config: Config) -> dict[str, Any]:
  """What every part that is asked for brings, by its short name; '' is the baseline."""
  folder, seeds = name_of(config, experiment.args), range(experiment.args.seeds)
  wanted = asked(config, experiment.args)

  def runs(short: str, change: Callable[[Config], Config]) -> list[Any]:
    return [experiment.run(f'{folder}/{short}_{seed}', config_lib.replace(
        change(config), {'train.seed': seed})) for seed in seeds]

  plain = runs('baseline', lambda config: config)
  before = scores(plain, ())
  found: dict[str, Any] = {'': {
      'accuracy': summary.statistics(before.accuracy), 'loss': summary.statistics(before.loss),
      'results': dict(plain[0].results)}}
  for short, part in wanted.items():
    change = part.change
    if short == 'distillation':
      change = setting(loss=Distillation(teachers=tuple(str(run.path) for run in plain)))
    own = scores(runs(short, change) if change else plain, part.tta)
    first, second = (own, before) if part.taken_away else (before, own)
    gain = metrics.paired_difference([100 * value for value in first.accuracy],
                                     [100 * value for value in second.accuracy])
    less = metrics.paired_difference(first.loss, second.loss)
    found[short] = {'gain': gain._asdict(), 'loss': less._asdict(),
                    'accuracy': summary.statistics(own.accuracy)}
    print(f'{part.name}: {record.points(gain)} points', flush=True)
  return found


class Clock:
  """A config at work, for measurements of time."""

  def __init__(self, config: Config, directory: pathlib.Path):
    config, _, dataset, mesh = train.prepare(config, directory)
    self._equipment = Equipment(config, dataset, mesh)
    self._programs, self._epoch = self._equipment.programs, 0
    self._hyper = self._programs.put(hyper_arrays(config))
    self._state = self._programs.call(self._programs.init, self._programs.put(np.int32(0)),
                                      self._hyper)
    self._batches = evaluation.Batches(dataset.validation, config.evaluate.batch_size, mesh,
                                       resident=True)

  def epoch(self) -> float:
    """Seconds of training of an epoch, by the first steps of one."""
    steps = self._programs.horizon.steps_per_epoch
    calls = self._equipment.train(self._state, self._programs.zero(), self._hyper, self._epoch)
    self._epoch += 1
    began = time.perf_counter()
    for done, self._state, _ in calls:
      if done >= STEPS:
        break
    jax.block_until_ready(self._state)
    return (time.perf_counter() - began) * steps / done

  def look(self) -> float:
    """Seconds to look at every validation image once, with the views of the config."""
    began = time.perf_counter()
    evaluation.predict(self._programs, self._state.variables(), self._batches, lambda: None)
    return time.perf_counter() - began


def timed(experiment: record.Experiment, config: Config, path: pathlib.Path) -> dict[str, Any]:
  """Seconds of baseline and part, in turn, by its short name; goes on with those that lack."""
  found = files.read_json(path) if path.exists() else {}
  machine.setup(compile_cache=config.train.compile_cache)
  plain: Clock | None = None
  directory = experiment.runs / name_of(config, experiment.args) / 'timing'
  for short, part in asked(config, experiment.args).items():
    if short in found or short == 'distillation':  # Which costs the teachers, and an epoch nothing.
      continue
    plain = plain or Clock(config, directory)
    own = config_lib.replace((part.change or (lambda config: config))(config),
                             {'evaluate.tta': part.tta})
    clock = Clock(config_lib.validate(own), directory)
    measure = Clock.look if part.tta else Clock.epoch
    pairs = [(measure(plain), measure(clock)) for _ in range(ROUNDS + 1)][1:]  # The first compiles.
    first, second = reversed(list(zip(*pairs))) if part.taken_away else zip(*pairs)
    found[short] = {'without': statistics.median(first), 'with': statistics.median(second)}
    files.write_json(path, found)
    print(f'{part.name}: {found[short]["with"] / found[short]["without"]:.2f} times the seconds',
          flush=True)
  return found


def body(experiment: record.Experiment) -> None:
  """Trains or measures time, and writes what there is."""
  config, folder = baseline(experiment), name_of(baseline(experiment), experiment.args)
  timing = experiment.runs / folder / 'timing.json'
  timing.parent.mkdir(parents=True, exist_ok=True)
  gains = experiment.runs / folder / 'gains.json'
  if experiment.args.timing:
    timed(experiment, config, timing)
  else:
    found = trained(experiment, config)
    if experiment.args.parts:
      print('The table is written by the same command without --parts.')
      return
    files.write_json(gains, {**found, 'seeds': experiment.args.seeds,
                             'seconds': experiment.seconds})
  if not gains.exists():
    print(f'wrote {timing}; the table is written once the parts are trained.')
    return
  report(experiment, config, files.read_json(gains), files.read_json(timing) if timing.exists()
         else {})


def report(experiment: record.Experiment, config: Config, gains: Mapping[str, Any],
           times: Mapping[str, Any]) -> None:
  """Writes the table, sorted by gain, and what it teaches."""
  one = gains['']['results']
  experiment.seconds.update(gains['seconds'])
  known = parts(config)
  order = sorted(known, key=lambda short: -gains[short]['gain']['mean'])
  rows = [['part', 'gain, points', 'change of the loss', 'times the seconds an epoch', 'source']]
  for short in order:
    part, entry = known[short], gains[short]
    what = part.name + (' (in the baseline)' if part.taken_away else '')
    loss = metrics.Interval(**entry['loss'])
    width = '' if loss.half_width is None else f' +- {loss.half_width:.4f}'
    rows.append([what, record.points(metrics.Interval(**entry['gain'])),
                 f'{loss.mean:+.4f}{width}', cost(short, part, times.get(short)), part.source])
  words = lessons(known, gains)
  listed = '\n'.join(f'- {line}' for line in words)
  before = gains['']
  text = (f'{record.table(rows)}\n\nBaseline: `{experiment.args.config}`, '
          f'{config.train.epochs} epochs, {summary.plus_minus(before["accuracy"], 100, 2)} % and a '
          f'loss of {summary.plus_minus(before["loss"], 1, 4)} on {one["examples"]:,}'
          f'{" SYNTHETIC" if one["synthetic"] else ""} validation images after the last epoch; '
          f'{gains["seeds"]} seeds. Each part is added to it alone, or taken away from it; '
          'differences are paired by seed, with 95 % intervals (t), and none is corrected for '
          f'their number. {record.where(one)}. {record.took(experiment)}\n\n{listed}')
  experiment.save({'config': experiment.args.config, 'epochs': config.train.epochs,
                   'gains': {short: gains[short] for short in known},
                   'baseline': {name: before[name] for name in ('accuracy', 'loss')},
                   'seconds': dict(times), 'lessons': words, 'seeds': gains['seeds'],
                   'device': one['device'], 'versions': one['versions'],
                   'synthetic': one['synthetic']}, text)


def cost(short: str, part: Part, seconds: Mapping[str, float] | None) -> str:
  """A cell of the table."""
  if part.tta:
    times = len(views.views(part.tta))
    shown = f'{seconds["with"] / seconds["without"]:.1f}' if seconds else f'about {times}'
    return f'1.00; evaluation {shown}'
  if short == 'distillation':
    return '1.00, after the teachers'
  return f'{seconds["with"] / seconds["without"]:.2f}' if seconds else '-'


def lessons(known: Mapping[str, Part], gains: Mapping[str, Any]) -> list[str]:
  """Which parts help, which harm, which do neither as far as these seeds show."""
  nothing = 'Change nothing that these seeds show'
  groups: dict[str, list[str]] = {'Help': [], 'Harm': [], nothing: []}
  for short, part in known.items():
    change = metrics.Interval(**gains[short]['gain'])
    if change.half_width is None:
      continue
    word = (nothing if abs(change.mean) <= change.half_width
            else 'Help' if change.mean > 0 else 'Harm')
    groups[word].append(f'{part.name} ({record.points(change)})')
  return [f'{word}: {", ".join(names)}.' for word, names in groups.items() if names]


def extra(parser: argparse.ArgumentParser) -> None:
  """Arguments of its own."""
  parser.add_argument('--config', default='cnn', help='the baseline: a config file, or the name of '
                      'a shipped one (default: cnn)')
  parser.add_argument('--epochs', type=int, default=0, help='in place of the baseline\'s own')
  parser.add_argument('--parts', default='', help='these alone, by their short names, '
                      'separated by commas; for several processes, each on cores of its own')
  parser.add_argument('--timing', action='store_true', help='measures seconds an epoch in place of '
                      'training; on a machine that does nothing else')


if __name__ == '__main__':
  record.start(__file__, __doc__, body, seeds=5, extra=extra)
