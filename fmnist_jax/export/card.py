"""MODEL_CARD.md, in the form that model hubs read (arXiv:1810.03993)."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from typing import Any

from fmnist_jax import machine, metrics, views
from fmnist_jax.data.originals import ORIGINALS

MARK = 'library_name: fmnist_jax'  # By that a folder is known as an export's.


def render(facts: Mapping[str, Any], results: Mapping[str, Any],
           measured: Mapping[str, Mapping[str, Any]], missing: Mapping[str, str], *,
           calibrated: int) -> str:
  """The card.

  Args:
    facts: of the model, as `export_run` writes them into the other files.
    results: `metrics.summarize` of the model on the test images.
    measured: of the other files, `accuracy` by name.
    missing: those there are not, and why.
    calibrated: how many training images the ranges in 8 bits are from.
  """
  numbers = {'jax': machine.versions()['jax'], 'calibrated': calibrated}
  sections = [
      _front_matter(facts, results), _head(facts, results),
      *([_SYNTHETIC] if facts['synthetic'] else []),
      '## Files\n\n' + '\n\n'.join(
          [_FILES[name].format(**entry, **numbers) for name, entry in measured.items()]
          + [f'There is no `{name}`: {_text(why)}' for name, why in missing.items()]),
      _input(facts), _results(facts, results), _limits(facts), _licence(facts)]
  return '\n\n'.join(sections) + '\n'


def _front_matter(facts: Mapping[str, Any], results: Mapping[str, Any]) -> str:
  """YAML, of which JSON is a part."""
  known = ORIGINALS.get(facts['dataset'])
  title = f'{facts["model"]} on {facts["dataset"]}'
  dataset = (known and known.hub) or facts['dataset']
  measured = [{'type': kind, 'value': round(results[name], 6)}
              for kind, name in (('accuracy', 'accuracy'), ('f1', 'macro_f1'), ('loss', 'loss'))]
  index = [{'name': title, 'results': [{
      'task': {'type': 'image-classification'},
      'dataset': {'name': facts['dataset'], 'type': dataset, 'split': 'test'},
      'metrics': measured}]}]
  lines = [MARK, 'license: unknown', 'pipeline_tag: image-classification',
           'tags: ' + json.dumps(['image-classification', 'jax', 'flax', 'onnx', 'safetensors']
                                 + ['synthetic-data'] * facts['synthetic'])]
  if known and known.hub:
    lines.append(f'datasets: {json.dumps([dataset])}')
  return '\n'.join(['---', *lines, f'model-index: {json.dumps(index)}', '---'])


def _head(facts: Mapping[str, Any], results: Mapping[str, Any]) -> str:
  settings = ', '.join(f'{name} {_text(json.dumps(value))}'
                       for name, value in facts['settings'].items() if name != 'type')
  names = ', '.join(_text(name) for name in facts['class_names'])
  return (f'# {_text(facts["model"])} on {_text(facts["dataset"])}\n\n'
          f'A classifier of images into {len(facts["class_names"])} classes: {names}. It is right '
          f'about {_share(results["accuracy"], results["examples"])} of {results["examples"]:,} '
          f'test images. {facts["parameters"]:,} parameters, trained with fmnist_jax '
          f'{facts["fmnist_jax"]}; step {facts["step"]:,} of the run.\n\nSettings of the model: '
          f'{settings or "none"}.')


_SYNTHETIC = ('> **SYNTHETIC DATA.** This model has seen drawn pictures alone, in training and in '
              'testing. Its accuracy says nothing about photographs.')

_FILES = {
    'model.onnx': """\
`model.onnx`: the network, BatchNorm folded in, in float32, for every runtime that takes ONNX.

```python
import onnxruntime
session = onnxruntime.InferenceSession('model.onnx')
probabilities, = session.run(['probabilities'], {{'images': images}})
```""",
    'model_int8.onnx': """\
`model_int8.onnx`: the same in 8 bits (static quantisation, calibrated on {calibrated:,} training
images), loaded likewise, right about {accuracy:.2%} of the test images. It is smaller; whether it
is faster depends on the processor, and has to be measured there.""",
    'model.safetensors': """\
`model.safetensors`: the variables by their Flax names, nothing folded, for fmnist_jax and others.

```python
import flax, safetensors.numpy
flat = safetensors.numpy.load_file('model.safetensors')
variables = flax.traverse_util.unflatten_dict(flat, sep='/')
```""",
    'model.stablehlo': """\
`model.stablehlo`: program and weights for JAX, in float32, on CPUs, CUDA GPUs and TPUs. Written by
jax {jax}: JAX reads such files for six months at least, and refuses old ones; what lasts are the
other files.

```python
import jax, pathlib
content = bytearray(pathlib.Path('model.stablehlo').read_bytes())
probabilities = jax.export.deserialize(content).call(images)
```""",
}


def _input(facts: Mapping[str, Any]) -> str:
  text = (f'## Input\n\nArray `images`: {facts["images"]}. Array `probabilities`: '
          f'{facts["probabilities"]}.')
  if facts['preparation']:
    text += (' Photographs become such images as `python -m fmnist_jax.predict` does it.\n\n'
             + _text(facts['preparation']))
  return text


def _results(facts: Mapping[str, Any], results: Mapping[str, Any]) -> str:
  confusion = results['confusion_matrix']
  rows = []
  for k, entry in enumerate(results['per_class']):
    predicted = sum(row[k] for row in confusion)
    rows.append(f'| {_text(entry["name"])} | {entry["support"]:,} | '
                f'{_share(entry["precision"], predicted)} | '
                f'{_share(entry["recall"], entry["support"])} | {entry["f1"]:.4f} |')
  pairs = metrics.most_confused(confusion, facts['class_names'], 3)
  confused = '; '.join(f'{pair.share:.0%} of {_text(pair.true)} taken for {_text(pair.predicted)}'
                       for pair in pairs)
  return '\n'.join([
      '## Test results', '',
      'Computed in float32, with 95 % intervals (Wilson) over test images:', '',
      '| class | images | precision | recall | F1 |', '|---|---:|---|---|---:|', *rows, '',
      f'Accuracy {_share(results["accuracy"], results["examples"])}, macro F1 '
      f'{results["macro_f1"]:.4f}, loss {results["loss"]:.4f} nats, expected calibration error '
      f'{results["expected_calibration_error"]:.4f}. Most frequent mistakes: {confused or "none"}.',
      *_views(facts)])


def _views(facts: Mapping[str, Any]) -> list[str]:
  if not facts['tta']:
    return []
  return ['', 'That is of one look at each image. The run itself was measured with test-time '
          f'augmentation ({views.told(facts["tta"])}), which is no part of these files.']


def _limits(facts: Mapping[str, Any]) -> str:
  digests = '\n'.join(f'- {_text(name)}: `{_text(digest)}`'
                      for name, digest in sorted(facts['data_sha256'].items()))
  return (
      '## Limits\n\n'
      'Every image gets one of these classes, whatever it shows: there is no answer for what is '
      'none of them, and the probabilities of such an image mean nothing. The intervals above are '
      'of images like those of the test set; one training run is behind them, so they do not hold '
      'what another seed would change. Photographs differ from the test images in light, crop and '
      'background, and results on them will be worse.\n\n'
      f'## Data\n\n{_text(facts["dataset"])}, SHA-256 of its parts:\n\n{digests}')


def _licence(facts: Mapping[str, Any]) -> str:
  known = ORIGINALS.get(facts['dataset'])
  if known and known.licence:
    data = f'{known.title} is published under {known.licence}.'
  elif facts['dataset'] == 'synthetic':
    data = 'The pictures were drawn by fmnist_jax.'
  else:
    data = 'That of the data is not known here.'
  return ('## Licence\n\nfmnist_jax, which made these files, is under Apache-2.0. ' + data + ' The '
          'licence of the weights is for whoever trained them to choose: say it here and in '
          '`license` above before you publish them.')


def _share(share: float, examples: int) -> str:
  """A share of examples with its interval; of none there is nothing to say."""
  if not examples:
    return '-'
  low, high = metrics.wilson_interval(round(share * examples), examples)
  return f'{share:.2%} ({low:.2%} to {high:.2%})'


def _text(text: str) -> str:
  """Text that Markdown shows as it is."""
  escaped = html.escape(text, quote=False)
  return ''.join(f'\\{c}' if c in '\\|*`[]' else c for c in escaped)
