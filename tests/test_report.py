"""The report: what is shown is what was measured, on one page that needs nothing else."""

import base64
import html.parser
import io
import re
import subprocess
import sys

import matplotlib
import matplotlib.image
import numpy as np
import pytest
import sklearn.metrics

from fmnist_jax import config, metrics, report
from fmnist_jax.report import canvas, examples, page, pictures

PICTURES = ['class_distribution', 'confusion_matrix', 'curves', 'mistakes', 'per_class', 'samples']
NASTY = '<script>alert("$x$")</script> & a name too long for any axis'


def arguments(names=('shirt', 'coat', 'bag'), *, epochs=3, validation=True, perfect=False,
              channels=1, synthetic=False, count=40):
  """What `report.write` takes, made up: every class occurs, and unless perfect so do mistakes."""
  random = np.random.default_rng(7)
  labels = np.arange(count) % len(names)
  logits = random.normal(size=(count, len(names)))
  logits[np.arange(count), labels] += 20 if perfect else 1
  exps = np.exp(logits)
  probabilities = (exps / exps.sum(axis=1, keepdims=True)).astype(np.float32)
  history = []
  for epoch in range(1, epochs + 1):
    record = {'epoch': epoch, 'step': 10 * epoch, 'seconds': 2.0 * epoch,
              'images_per_second': 640.0, 'learning_rate': 1e-3}
    for i, name in enumerate(['train', 'clean_train'] + ['validation'] * validation):
      record |= {f'{name}_loss': 1 / (epoch + i), f'{name}_accuracy': 1 - 0.1 / (epoch + i)}
    history.append(record)
  results = {
      'dataset': 'garments', 'synthetic': synthetic, 'split': 'test',
      **metrics.summarize(probabilities, labels, names), 'parameters': 12345,
      'best_epoch': min(2, epochs),
      'best_validation_accuracy': history[min(2, epochs) - 1].get('validation_accuracy'),
      'epochs': epochs, 'seed': 3,
      'seconds': {'data': 1.0, 'compile': 2.0, 'train': 125.0, 'evaluate': 0.5},
      'data_sha256': {'train-images': 'ab' * 32}, 'versions': {'jax': '0.10.1'}, 'device': 'cpu'}
  return {
      'history': history, 'results': results, 'probabilities': probabilities, 'labels': labels,
      'images': random.integers(0, 256, (count, 8, 8, channels), np.uint8),
      'train_images': random.integers(0, 256, (30, 8, 8, channels), np.uint8),
      'train_labels': np.arange(90, dtype=np.uint8) % len(names),
      'class_names': names, 'config': config.to_json(config.Config()),
      'network': 'It is <made up>.'}


class Page(html.parser.HTMLParser):
  """Collects sources and text, and checks that tags are closed in order."""

  def __init__(self, text):
    super().__init__()
    self.open, self.sources, self.words = [], [], []
    self.feed(text)
    assert not self.open
    self.text = ' '.join(' '.join(self.words).split())

  def handle_starttag(self, tag, attrs):
    if tag not in ('meta', 'link', 'img', 'br', 'source'):
      self.open.append(tag)
    self.sources += [value for name, value in attrs if name in ('src', 'srcset', 'href')]

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if 'style' not in self.open:
      self.words.append(data)


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  """(arguments, folder of the report, its page)."""
  workdir = tmp_path_factory.mktemp('run')
  given = arguments((NASTY, 'coat', 'bag'))
  report.write(workdir, **given)
  folder = workdir / 'report'
  return given, folder, (folder / 'report.html').read_text('utf-8')


def test_all_files_are_there_and_nothing_else(written):
  _, folder, _ = written
  assert [path.name for path in folder.parent.iterdir()] == ['report']
  assert sorted(path.name for path in folder.iterdir()) == sorted(
      ['report.html', *(f'{name}.png' for name in PICTURES)])
  for name in PICTURES:
    picture = matplotlib.image.imread(folder / f'{name}.png')
    assert picture.shape[1] == 1000 and picture.std() > 0.02


def test_page_needs_no_other_file_and_no_network(written):
  _, folder, text = written
  parsed = Page(text)
  assert len(parsed.sources) > 50 and all(source.startswith('data:') for source in parsed.sources)
  # No picture names the program, version or date that made it.
  assert not [source for source in parsed.sources[1:]
              if b'tEXt' in base64.b64decode(source.partition(',')[2])]
  assert not re.search(r'https?:|url\(|@import|<script', text)
  for name in ('curves', 'confusion_matrix', 'per_class', 'class_distribution'):
    light = base64.b64encode((folder / f'{name}.png').read_bytes()).decode()
    assert f'data:image/png;base64,{light}' in parsed.sources


def test_dark_pages_get_dark_charts(written):
  _, _, text = written
  png = 'data:image/png;base64,([^"]*)'
  pairs = re.findall(r'<picture><source media="\(prefers-color-scheme: dark\)" '
                     f'srcset="{png}"><img src="{png}"', text)
  assert len(pairs) == 4
  for dark, light in pairs:
    means = [matplotlib.image.imread(io.BytesIO(base64.b64decode(png)))[..., :3].mean()
             for png in (dark, light)]
    assert means[0] < 0.4 and means[1] > 0.75


def test_text_is_escaped(written):
  _, _, text = written
  assert NASTY not in text and NASTY in Page(text).text


def test_page_says_what_was_measured(written):
  given, _, text = written
  words, results = Page(text).text, given['results']
  hits = round(results['accuracy'] * 40)
  low, high = metrics.wilson_interval(hits, 40)
  assert f'{100 * results["accuracy"]:.2f}% right' in words
  assert f'{hits} of 40 test images' in words
  assert f'{100 * low:.2f}% and {100 * high:.2f}%' in words
  for value in (f'{results["loss"]:.4f}', f'{results["macro_f1"]:.4f}', '12,345', '2 min 05 s',
                'kept: epoch 2', '0.10.1', 'validation_examples', 'ab' * 32):
    assert value in words, value
  # Epoch 2: clean training 1 - 0.1 / 3, validation 1 - 0.1 / 4.
  assert '96.7% of training images and 97.5% of validation images' in words
  assert 'a gap of -0.8 points' in words
  worst = metrics.most_confused(np.array(results['confusion_matrix']), given['class_names'], 1)[0]
  assert f'{worst.true} was taken for {worst.predicted} {worst.examples} times' in words
  for entry in results['per_class']:
    assert (f'{entry["name"]} {entry["precision"]:.4f} {entry["recall"]:.4f} {entry["f1"]:.4f} '
            f'{entry["support"]}') in words
  assert 'Synthetic' not in words


def test_same_run_same_bytes(written, tmp_path):
  given, folder, _ = written
  with matplotlib.rc_context({'axes.labelsize': 30, 'font.size': 30}):  # the user's own taste
    report.write(tmp_path, **given)
    assert matplotlib.rcParams['font.size'] == 30
  for path in folder.iterdir():
    content = path.read_bytes()
    assert (tmp_path / 'report' / path.name).read_bytes() == content, path.name
    assert b'matplotlib' not in content.lower()


def test_one_perfect_epoch_without_validation_on_synthetic_colour_images(tmp_path):
  names = ('日本', r'$\nonsense$' + 'x' * 60)
  report.write(tmp_path, **arguments(names, epochs=1, validation=False, perfect=True, channels=3,
                                     synthetic=True))
  words = Page((tmp_path / 'report' / 'report.html').read_text('utf-8')).text
  for sentence in ('Synthetic data', 'Not one mistake.', 'Nothing was confused',
                   'There was no validation data', '100.00% right', *names):
    assert sentence in words, sentence


def test_many_classes_some_never_seen(tmp_path):
  given = arguments(tuple(f'kind {i}' for i in range(25)), count=60)
  given['train_labels'] = np.zeros(90, np.int64)
  given['validation_labels'] = np.array([3])
  report.write(tmp_path, **given)
  assert 'kind 24' in Page((tmp_path / 'report' / 'report.html').read_text('utf-8')).text


PROBABILITIES = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.2, 0.8], [0.6, 0.4]], np.float32)
LABELS = np.array([0, 0, 0, 0, 1])


def test_mistakes_come_most_confident_first():
  images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 1), np.uint8)
  found = examples.confident_mistakes(PROBABILITIES, LABELS, images, 3)
  assert [(e.place, e.true, e.predicted) for e in found] == [(1, 0, 1), (3, 0, 1), (2, 0, 1)]
  assert found[0].probability == pytest.approx(0.8, abs=1e-7)
  assert found[0].probability_of_truth == pytest.approx(0.2, abs=1e-7)
  np.testing.assert_array_equal(found[1].image_HxWx3, np.full((2, 2, 3), 3))
  right = examples.right_of_each_class(PROBABILITIES, LABELS, images, 10)
  assert [(e.place, e.true, e.predicted) for e in right] == [(0, 0, 0)]


def test_samples_are_the_first_of_their_class():
  images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
  rows = examples.first_of_each_class(images, np.array([2, 0, 2, 2, 0]), 3, 2)
  assert [[image[0, 0, 0] for image in row] for row in rows] == [[1, 4], [], [0, 2]]


def curve(axes, label):
  return next(line for line in axes.lines if line.get_label() == label).get_xydata()


def test_curves_show_the_history_and_the_best_epoch():
  history = arguments()['history']
  loss, accuracy = pictures.curves(history, 2, canvas.LIGHT).axes
  np.testing.assert_allclose(curve(loss, 'validation'), [[1, 1 / 3], [2, 1 / 4], [3, 1 / 5]])
  np.testing.assert_allclose(curve(loss, 'training, clean'), [[1, 1 / 2], [2, 1 / 3], [3, 1 / 4]])
  np.testing.assert_allclose(curve(accuracy, 'training, as trained'),
                             [[1, 90], [2, 95], [3, 100 - 10 / 3]])
  np.testing.assert_allclose(curve(accuracy, 'best: epoch 2'), [[2, 97.5]])
  assert loss.get_ylabel() == 'loss (nats)' and accuracy.get_xlabel() == 'epoch'

  history = arguments(validation=False)['history']
  _, accuracy = pictures.curves(history, 3, canvas.DARK).axes
  labels = [line.get_label() for line in accuracy.lines if not line.get_label().startswith('_')]
  assert labels == ['training, as trained', 'training, clean', 'kept: epoch 3']


def test_confusion_picture_has_counts_and_shares_of_the_row():
  figure = pictures.confusion_matrix(np.array([[3, 1], [0, 2]]), ('coat', 'bag'), canvas.LIGHT)
  axes, = figure.axes
  placed = {}
  for text in axes.texts:
    x, y = np.round(text.get_position()).astype(int)
    placed.setdefault((int(y), int(x)), []).append(text.get_text())
  assert placed == {(0, 0): ['3', '75.0%'], (0, 1): ['1', '25.0%'], (1, 1): ['2', '100.0%']}
  assert [label.get_text() for label in axes.get_yticklabels()] == ['coat', 'bag']
  assert (axes.get_xlabel(), axes.get_ylabel()) == ('predicted class', 'true class')


def test_bars_are_ordered_by_f1_and_counts_by_class():
  scores = [{'name': 'coat', 'precision': 0.5, 'recall': 0.25, 'f1': 1 / 3, 'support': 4},
            {'name': 'bag', 'precision': 1.0, 'recall': 0.9, 'f1': 0.95, 'support': 10}]
  axes, = pictures.per_class(scores, canvas.LIGHT).axes
  assert [label.get_text() for label in axes.get_yticklabels()] == ['bag', 'coat']
  widths = {bars.get_label(): [bar.get_width() for bar in bars] for bars in axes.containers}
  assert widths == {'precision': [100, 50], 'recall': [90, 25], 'F1': [95, pytest.approx(100 / 3)]}

  labels = {'train': np.array([0, 0, 1, 0]), 'test': np.array([1])}
  axes, = pictures.class_distribution(labels, ('coat', 'bag'), canvas.LIGHT).axes
  widths = {bars.get_label(): [bar.get_width() for bar in bars] for bars in axes.containers}
  assert widths == {'train (4)': [75, 25], 'test (1)': [0, 100]}


def test_many_classes_are_drawn_by_size():
  sizes = np.array([3, 1000, 20] + [2] * 297)
  labels = {'train': np.repeat(np.arange(300), sizes), 'test': np.repeat([1, 2], [70, 5])}
  with canvas.drawing():
    figure = pictures.class_distribution(labels, [f'n{i}' for i in range(300)], canvas.LIGHT)
    canvas.png(figure)
  axes, = figure.axes
  curves = {line.get_label(): line.get_ydata().tolist() for line in axes.lines}
  assert curves == {'train (1,617)': [1000, 20, 3] + [2] * 297, 'test (75)': [70, 5] + [0] * 298}
  assert axes.get_xlabel() == 'classes by size, from n1 to n299'
  assert axes.get_ylim()[0] < 0 < 1000 < axes.get_ylim()[1]  # Nought is seen, too.
  for text in (axes.yaxis.label, *axes.get_yticklabels(), *figure.legends[0].get_texts()):
    box = text.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width


@pytest.mark.parametrize('share, text', [(0, '0.0%'), (0.123, '12.3%'), (0.99949, '99.9%'),
                                         (0.9999, '>99.9%'), (1, '100.0%')])
def test_percent_keeps_100_for_certainty(share, text):
  assert canvas.percent(share) == text


@pytest.mark.parametrize('seconds, text', [(8.34, '8.3 s'), (59.96, '1 min 00 s'),
                                           (116, '1 min 56 s'), (3599.7, '1 h 00 min'),
                                           (7500, '2 h 05 min')])
def test_durations(seconds, text):
  assert page.duration(seconds) == text


def test_classification_table_has_scikit_learns_numbers():
  given = arguments()
  lines = report.classification_table(given['results']).splitlines()
  assert len(set(map(len, lines)) - {0}) == 1, 'columns must line up'
  expected = sklearn.metrics.classification_report(
      given['labels'], given['probabilities'].argmax(axis=1), target_names=given['class_names'],
      digits=4)
  assert [line.split()[1:] for line in lines[1:4]] == [line.split()[1:]
                                                       for line in expected.splitlines()[2:5]]
  macro, accuracy = lines[5].split(), lines[6].split()
  assert macro[2:] == expected.splitlines()[-2].split()[2:]
  assert accuracy == expected.splitlines()[-3].split()


def test_matplotlib_waits_until_it_is_needed_and_pyplot_stays_out():
  code = ('import sys, fmnist_jax.report; assert "matplotlib" not in sys.modules; '
          'import fmnist_jax.report.page; assert "matplotlib.pyplot" not in sys.modules')
  subprocess.run([sys.executable, '-c', code], check=True)


def test_thousands_of_epochs_make_no_larger_page(tmp_path):
  sizes = []
  for epochs in (3, 5000):
    report.write(tmp_path, **arguments(epochs=epochs))
    sizes.append((tmp_path / 'report' / 'report.html').stat().st_size)
  assert sizes[1] < 1.5 * sizes[0]


def test_a_path_that_is_no_text_is_shown(tmp_path):
  given = arguments()
  given['config']['data']['data_dir'] = '/data/\udcff'
  report.write(tmp_path, **given)
  assert '/data/\\udcff' in (tmp_path / 'report' / 'report.html').read_text('utf-8')
