"""What narrows the gap between training and validation; see README.md."""

from __future__ import annotations

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np
import record

from fmnist_jax import config_file, metrics
from fmnist_jax.config import CNN, MLP, Adam, AdamW, Config, Data, Flip, Shift, Train
from fmnist_jax.population import comparison, summary
from fmnist_jax.storage import files, workdir

EPOCHS = {'mlp': 40, 'cnn': 20}
LAYERS = {'mlp': {False: MLP(hidden=(128,)), True: MLP(hidden=(128,), dropout=0.3)},
          'cnn': {False: CNN(), True: CNN(dropout=(0.25, 0.25), dense_dropout=0.4)}}
REMEDIES = {
    'nothing': (), 'dropout': ('dropout',), 'weight decay': ('decay',),
    'augmentation': ('augment',), 'early stopping': ('stop',),
    'all of them': ('dropout', 'decay', 'augment', 'stop')}


def config(family: str, remedies: tuple[str, ...]) -> Config:
  """A family with the plain recipe of the tutorials (Adam, constant rate) and some remedies."""
  optim = AdamW(weight_decay=0.1) if 'decay' in remedies else Adam()
  augment = (Flip(), Shift(2)) if 'augment' in remedies else ()
  return Config(
      data=Data(augment=augment), model=LAYERS[family]['dropout' in remedies], optim=optim,
      train=Train(epochs=EPOCHS[family], monitor='validation_loss',
                  early_stopping_patience=4 if 'stop' in remedies else 0))


def describe(directory: pathlib.Path) -> dict[str, object]:
  """Gaps, losses and accuracies of a population, with intervals."""
  group, = files.read_json(directory / 'population.json')['groups']
  members = [summary.read(directory / 'members' / name) for name in group['members']]
  last = [member.history[-1] for member in members]
  best_loss = [min(entry['validation_loss'] for entry in member.history) for member in members]
  return {
      'gap_at_end': summary.statistics([entry['clean_train_accuracy']
                                        - entry['validation_accuracy'] for entry in last]),
      'validation_accuracy_at_end': summary.statistics([entry['validation_accuracy']
                                                        for entry in last]),
      'loss_rise': summary.statistics([entry['validation_loss'] - low
                                       for entry, low in zip(last, best_loss)]),
      'seeds': group['seeds'], 'epochs': group['epochs'], 'accuracy': group['accuracy'],
      'loss': group['loss'], 'f1_of_class': group['f1_of_class']}


def picture(directories: dict[str, dict[str, pathlib.Path]]) -> bytes:
  """A row a remedy, a column a family: accuracy of training and validation with their bands."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure
  from matplotlib.ticker import MaxNLocator

  from fmnist_jax.report import canvas
  theme = canvas.LIGHT
  with canvas.drawing():
    figure = Figure(figsize=(7.2, 1.75 * len(REMEDIES) + 0.4), dpi=150, facecolor=theme.surface,
                    layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(REMEDIES), len(LAYERS), sharex='col', sharey='col')
    for column, family in enumerate(LAYERS):
      for row, remedy in enumerate(REMEDIES):
        panel, directory = axes[row, column], directories[family][remedy]
        group, = files.read_json(directory / 'population.json')['groups']
        histories = [workdir.History(directory / 'members' / name / 'metrics.jsonl').read()
                     for name in group['members']]
        for kind, label, color in (('clean_train', 'training, clean', theme.first),
                                   ('validation', 'validation', theme.second)):
          mean, std = (100 * part for part in summary.spread(histories, f'{kind}_accuracy'))
          epochs = np.arange(1, len(mean) + 1)
          panel.fill_between(epochs, mean - std, mean + std, color=color, alpha=0.25, linewidth=0)
          panel.plot(epochs, mean, color=color, linewidth=1.6, label=label,
                     marker='o' if len(mean) == 1 else '')
        panel.set_title(f'{family.upper()}, {remedy}', fontsize=9, loc='left', color=theme.ink)
        panel.grid(color=theme.grid, linewidth=0.8)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
        panel.set_ylabel('accuracy (%)' if not column else '', color=theme.ink)
    for panel in axes[-1]:
      panel.set_xlabel('epoch', color=theme.ink)
    axes[0, 0].legend(frameon=False, fontsize=8)
    return canvas.png(figure)


def lessons(found: dict[str, dict[str, dict]], families: dict, deeper: dict) -> list[str]:
  """What the publications teach, and whether it is so here."""
  lines = []
  for family, remedies in found.items():
    for remedy in list(remedies)[1:]:
      gap, accuracy = (_change(remedies['nothing'], remedies[remedy], name)
                       for name in ('gap_at_end', 'validation_accuracy_at_end'))
      verdict = [_verdict(gap, 'narrows', 'widens', 'the gap'),
                 _verdict(accuracy, 'lowers', 'raises', 'validation accuracy')]
      lines.append(f'{family.upper()}, {remedy}, at the end: {" and ".join(verdict)}.')
  dense, convolutional = map(record.duration, families['seconds'])
  lines.append(f'"CNNs beat dense networks at similar cost", with nothing against overfitting: '
               f'{families["words"]} The dense networks ({EPOCHS["mlp"]} epochs) were trained in '
               f'{dense}, the CNNs ({EPOCHS["cnn"]} epochs) in {convolutional}.')
  lines.append(f'"The deeper CNN is no better" (B2), with a proper recipe: {deeper["words"]}')
  scores = sorted(found['cnn']['all of them']['f1_of_class'].items(),
                  key=lambda item: item[1]['mean'])
  said = [f'{name} {100 * score["mean"]:.1f}' for name, score in scores]
  lines.append(f'"Shirt is the hardest class; Trouser, Bag, Sandal, Sneaker and Ankle boot are the '
               f'easiest": F1 (%) of the CNN with all of them, hardest first: {", ".join(said)}.')
  return lines


def _change(plain: dict, other: dict, name: str) -> metrics.Interval:
  """By how many points a remedy changes something, paired over the seeds both have."""
  left, right = (dict(zip(entry['seeds'], entry[name]['values'])) for entry in (plain, other))
  common = sorted(left.keys() & right.keys())
  return metrics.paired_difference([100 * left[seed] for seed in common],
                                   [100 * right[seed] for seed in common])


def _verdict(change: metrics.Interval, less: str, more: str, what: str) -> str:
  if change.half_width is None:
    return f'changes {what} by {change.mean:+.2f} points with one seed'
  shown = f'({change.mean:+.2f} +- {change.half_width:.2f} points)'
  if abs(change.mean) <= change.half_width:
    return f'changes {what} by nothing that these seeds show {shown}'
  return f'{less if change.mean < 0 else more} {what} {shown}'


def body(experiment: record.Experiment) -> None:
  """Trains every family with every remedy, and B2's two CNNs."""
  directories = {family: {remedy: experiment.population(
      f'overfitting_{family}_{remedy.replace(" ", "_")}', config(family, remedies))
      for remedy, remedies in REMEDIES.items()} for family in LAYERS}
  found = {family: {remedy: describe(directory) for remedy, directory in remedies.items()}
           for family, remedies in directories.items()}
  plain = [directories[family]['nothing'] for family in LAYERS]
  pair = [experiment.population(name, config_file.load(name))
          for name in ('cnn_basic', 'cnn_deep')]
  families, deeper = (comparison.difference(*comparison.read(two)) for two in (plain, pair))
  families['seconds'] = [experiment.seconds[directory.name] for directory in plain]
  one = files.read_json(pair[0] / 'population.json')
  results = {'remedies': found, 'families': families, 'deeper': deeper,
             'lessons': lessons(found, families, deeper), 'seconds': experiment.seconds,
             'device': one['device'], 'versions': one['versions'], 'synthetic': one['synthetic']}
  rows = [['', 'gap at the end, points', 'validation at the end %', 'validation loss above its '
           'lowest', 'test accuracy % (best epoch)', 'test loss', 'epochs']]
  for family, remedies in found.items():
    for remedy, entry in remedies.items():
      rows.append([f'{family.upper()}, {remedy}', summary.plus_minus(entry['gap_at_end'], 100, 2),
                   summary.plus_minus(entry['validation_accuracy_at_end'], 100, 2),
                   summary.plus_minus(entry['loss_rise'], 1, 3),
                   summary.plus_minus(entry['accuracy'], 100, 2),
                   summary.plus_minus(entry['loss'], 1, 4),
                   f'{np.mean(entry["epochs"]):.0f}'])
  words = '\n'.join(f'- {line}' for line in results['lessons'])
  text = (f'{record.table(rows)}\n\n{record.means(experiment, one)} {record.took(experiment)}\n\n'
          'Differences are paired over seeds and none is corrected for their number:\n\n'
          f'{words}\n\n![accuracy by epoch: mean over the seeds still training, and one standard '
          'deviation about it](curves.png)')
  experiment.save(results, text, {'curves.png': picture(directories)})


if __name__ == '__main__':
  record.start(__file__, __doc__, body, seeds=5)
