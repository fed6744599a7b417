"""Which garments are taken for which, by every seed; see README.md."""

from __future__ import annotations

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np
import record

from fmnist_jax import config_file, data, metrics
from fmnist_jax.population import summary
from fmnist_jax.storage import files, workdir

MODELS = ('mlp', 'cnn', 'cnn_blocks', 'cnn_augmented')
PAIRS, FIRST, SHOWN = 10, 5, 40


def classes(members: list[summary.Finished]) -> list[dict[str, object]]:
  """Recall, precision, F1 of each class over members, hardest first."""
  found = []
  for k, entry in enumerate(members[0].results['per_class']):
    scores = {name: summary.statistics([member.results['per_class'][k][name]
                                        for member in members])
              for name in ('recall', 'precision', 'f1')}
    found.append({'name': entry['name'], **scores})
  return sorted(found, key=lambda entry: entry['f1']['mean'])


def pairs(members: list[summary.Finished], which: list[tuple[str, str]]) -> list[dict[str, object]]:
  """How many images each member takes for another class, for some pairs (true, predicted).

  `among_the_first` is how many members have the pair among their own `FIRST` commonest.
  """
  names = [entry['name'] for entry in members[0].results['per_class']]
  matrices = [np.array(member.results['confusion_matrix']) for member in members]
  tops = [{(pair.true, pair.predicted) for pair in metrics.most_confused(matrix, names, FIRST)}
          for matrix in matrices]
  return [{'true': true, 'predicted': predicted,
           'examples': summary.statistics([float(matrix[names.index(true), names.index(predicted)])
                                           for matrix in matrices]),
           'among_the_first': sum((true, predicted) in top for top in tops),
           'members': len(members)} for true, predicted in which]


def always_wrong(members: list[summary.Finished]) -> list[dict[str, object]]:
  """Test images that no member gets right, with the members' votes; most agreed first."""
  votes = np.stack([member.probabilities.argmax(1) for member in members])
  labels = members[0].labels
  lost = np.flatnonzero((votes != labels).all(0))
  found = []
  for index in lost:
    counts = np.bincount(votes[:, index], minlength=members[0].probabilities.shape[1])
    confidence = np.mean([member.probabilities[index].max() for member in members])
    found.append({'image': int(index), 'label': int(labels[index]),
                  'votes': {int(k): int(counts[k]) for k in np.argsort(-counts) if counts[k]},
                  'confidence': float(confidence)})
  return sorted(found, key=lambda entry: (-max(entry['votes'].values()), -entry['confidence']))


def sheet(wrong: list[dict], dataset: data.Dataset) -> bytes:
  """The first of the images that every member gets wrong: label, and who votes for what."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  from fmnist_jax.report import canvas
  theme = canvas.LIGHT
  shown = wrong[:SHOWN]
  columns = 8
  lines = max(1, -(-len(shown) // columns))
  with canvas.drawing():
    figure = Figure(figsize=(9.6, 1.75 * lines + 0.2), dpi=130, facecolor=theme.surface,
                    layout='constrained')
    FigureCanvasAgg(figure)
    panels = np.atleast_1d(figure.subplots(lines, columns)).ravel()
    for panel in panels:
      panel.set_axis_off()
    if shown:
      images = dataset.test.fetch(np.array([entry['image'] for entry in shown]))
      for panel, entry, image in zip(panels, shown, images):
        panel.imshow(image[..., 0], cmap='gray_r', interpolation='nearest')
        votes = '\n'.join(f'{count} x {canvas.short(dataset.class_names[k])}'
                          for k, count in list(entry['votes'].items())[:3])
        panel.set_title(f'#{entry["image"]}: {canvas.short(dataset.class_names[entry["label"]])}',
                        fontsize=7.5, color=theme.ink, pad=2)
        panel.text(0.5, -0.03, votes, transform=panel.transAxes, ha='center', va='top',
                   fontsize=7, color=theme.wrong)
    return canvas.png(figure)


def body(experiment: record.Experiment) -> None:
  """Trains, or finds trained, some of the published models, and looks at all their mistakes."""
  from fmnist_jax.report import canvas, pictures
  members: dict[str, list[summary.Finished]] = {}
  for name in MODELS:
    directory = experiment.population(name, config_file.load(name))
    one = files.read_json(directory / 'population.json')
    members[name] = [summary.read(directory / 'members' / member)
                     for member in one['groups'][0]['members']]
  everyone = [member for several in members.values() for member in several]
  dataset = data.load(workdir.read_config(directory).data)
  confusion = np.sum([member.results['confusion_matrix'] for member in everyone], axis=0)
  which = [(pair.true, pair.predicted)
           for pair in metrics.most_confused(confusion, dataset.class_names, PAIRS)]
  found = {name: {'classes': classes(several), 'pairs': pairs(several, which)}
           for name, several in members.items()}
  wrong = always_wrong(everyone)
  results = {'models': found, 'members': len(everyone), 'classes': classes(everyone),
             'always_wrong': wrong, 'confusion_matrix': confusion.tolist(),
             'seconds': experiment.seconds, 'device': one['device'], 'versions': one['versions'],
             'synthetic': one['synthetic']}
  rows = [['class', *(f'F1 %, `{name}`' for name in MODELS)]]
  by_name = {name: {entry['name']: entry['f1'] for entry in found[name]['classes']}
             for name in MODELS}
  for entry in results['classes']:
    rows.append([entry['name'], *(summary.plus_minus(by_name[name][entry['name']], 100, 2)
                                  for name in MODELS)])
  confusions = [['taken for', *(f'images, `{name}`' for name in MODELS)]]
  for k, (true, predicted) in enumerate(which):
    cells = [found[name]['pairs'][k] for name in MODELS]
    confusions.append([f'{true} for {predicted}', *(
        f'{summary.plus_minus(cell["examples"], 1, 0)} ({cell["among_the_first"]}/'
        f'{cell["members"]})' for cell in cells)])
  lost = np.bincount([entry['label'] for entry in wrong], minlength=len(dataset.class_names))
  of_class = ', '.join(f'{dataset.class_names[k]} {lost[k]}'
                       for k in np.argsort(-lost) if lost[k])
  text = (f'{record.table(rows)}\n\n{record.table(confusions)}\n\n'
          f'{record.means(experiment, one)} In brackets: how many of the seeds have the pair '
          f'among their own {FIRST} commonest. {record.took(experiment)}\n\n'
          f'{len(wrong)} of {len(dataset.test):,} test images are wrong with every one of '
          f'{len(everyone)} members{": " + of_class if of_class else ""}.\n\n'
          '![confusion matrix of all members](confusion.png)\n\n'
          '![test images that every member gets wrong, and what it takes them for]'
          '(always_wrong.png)')
  with canvas.drawing():
    matrix = canvas.png(pictures.confusion_matrix(confusion, dataset.class_names, canvas.LIGHT))
  experiment.save(results, text, {'confusion.png': matrix,
                                  'always_wrong.png': sheet(wrong, dataset)})


if __name__ == '__main__':
  record.start(__file__, __doc__, body, seeds=5)
