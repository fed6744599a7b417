"""What an export writes, in the eyes of those who read it."""

import json
import pathlib
import shutil

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lab.parts import CLASSES, Patterns

import fmnist_jax
from fmnist_jax import data, interrupt, metrics, models, report
from fmnist_jax.config import CNN, AdamW, Config, Train
from fmnist_jax.errors import ExportError, UserError
from fmnist_jax.export import __main__ as command
from fmnist_jax.export import card, folder

onnxruntime = pytest.importorskip('onnxruntime')
import onnx  # noqa: E402
import safetensors  # noqa: E402
import safetensors.numpy  # noqa: E402

from fmnist_jax.export import int8, runtime, serving  # noqa: E402


def train(model, directory):
  """A run on 32 x 32 coloured pictures of 7 classes, which are easily learned."""
  config = Config(
      data=Patterns(validation_examples=70, batch_size=20), model=model,
      optim=AdamW(learning_rate=1e-2),
      train=Train(epochs=1, operations='native', precision='bfloat16', devices=1))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(report, 'write', lambda *_, **__: None)  # It takes long.
    fmnist_jax.train_and_evaluate(config, directory)
  return directory


@pytest.fixture(scope='module', name='run')
def _run(tmp_path_factory):
  """A run with BatchNorm, in 16 bits."""
  model = CNN(channels=(8,), pool=(4,), batch_norm=True, dense=(64,))
  return train(model, tmp_path_factory.mktemp('export') / 'run')


@pytest.fixture(scope='module', name='made')
def _made(run):
  """An export of it by the command, and what export_run says of another."""
  command.main(interrupt.Interrupt(), ['--workdir', str(run), f'--output={run}/out'])
  return run / 'out', fmnist_jax.export_run(run, run / 'again')


@pytest.fixture(scope='module', name='truth')
def _truth(run):
  """The model, test images and labels, and probabilities by a plain apply in float32."""
  model = fmnist_jax.load_run(run)
  images, labels = data.load(model.config.data).test.arrays()
  module = models.build(model.config.model, 7, models.Compute())
  expected = jax.nn.softmax(module.apply(model.variables, images / np.float32(255), train=False))
  return model, images, labels, np.asarray(expected)


def test_exporting_twice_gives_the_same_bytes(made):
  out, _ = made
  names = sorted(path.name for path in out.iterdir())
  assert names == sorted(folder.NAMES)
  for name in names:
    assert (out / name).read_bytes() == (out.parent / 'again' / name).read_bytes(), name
    assert str(pathlib.Path.cwd()).encode() not in (out / name).read_bytes()


def test_onnx_is_the_model_and_says_what_it_is(made, truth):
  (out, told), (model, images, labels, expected) = made, truth
  session = onnxruntime.InferenceSession(out / 'model.onnx')
  for part in (images, images[:1]):
    found, = session.run(['probabilities'], {'images': part})
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected[:len(part)], atol=1e-5)
  kinds = [node.op_type for node in onnx.load(out / 'model.onnx').graph.node]
  assert 'BatchNormalization' not in kinds and kinds.count('Conv') == 1
  facts = session.get_modelmeta().custom_metadata_map
  assert json.loads(facts['class_names']) == list(model.class_names)
  assert json.loads(facts['data_sha256']) == model.progress['data']['sha256']
  assert float(facts['test_accuracy']) == (expected.argmax(-1) == labels).mean()
  assert facts['images'] == 'uint8 [N, 32, 32, 3], 0 to 255' and '8. It is' in facts['preparation']
  assert facts['synthetic'] == 'true'
  assert told['files']['model.onnx']['difference'] < 1e-5
  assert told['files']['model.onnx']['images_per_second'] > 0 and told['missing'] == {}


def test_int8_is_small_and_nearly_as_right(made, truth):
  (out, told), (_, images, labels, expected) = made, truth
  session = onnxruntime.InferenceSession(out / 'model_int8.onnx')
  found, = session.run(['probabilities'], {'images': images})
  accuracy = (found.argmax(-1) == labels).mean()
  assert accuracy >= (expected.argmax(-1) == labels).mean() - 1 / 70
  assert told['files']['model_int8.onnx']['accuracy'] == accuracy
  assert 1e-5 < np.abs(found - expected).max() < 0.2
  model = onnx.load(out / 'model_int8.onnx')
  weights = [array for array in model.graph.initializer
             if array.data_type == onnx.TensorProto.INT8 and len(array.dims) > 1]
  assert sorted(len(array.dims) for array in weights) == [2, 2, 4]
  assert (out / 'model_int8.onnx').stat().st_size < (out / 'model.onnx').stat().st_size / 1.5
  assert session.get_modelmeta().custom_metadata_map['dataset'] == 'patterns'


def test_safetensors_are_the_variables_by_name(made, truth):
  (out, _), (model, *_) = made, truth
  found = safetensors.numpy.load_file(out / 'model.safetensors')
  assert 'params/Conv_0/kernel' in found and 'batch_stats/BatchNorm_0/var' in found
  jax.tree.map(np.testing.assert_array_equal, flax.traverse_util.unflatten_dict(found, sep='/'),
               jax.device_get(model.variables))
  with safetensors.safe_open(out / 'model.safetensors', 'numpy') as file:
    facts = json.loads(file.metadata()['fmnist_jax'])
  assert facts['model'] == 'CNN' and facts['settings']['channels'] == [8]


def test_stablehlo_takes_any_number_of_images(made, truth):
  (out, _), (_, images, _, expected) = made, truth
  exported = jax.export.deserialize(bytearray((out / 'model.stablehlo').read_bytes()))
  assert exported.platforms == ('cpu', 'cuda', 'tpu')
  for count in (1, 7):
    np.testing.assert_allclose(exported.call(images[:count]), expected[:count], atol=1e-5)


def test_the_card_says_what_was_measured(made, truth):
  (out, _), (_, _, labels, expected) = made, truth
  text = (out / 'MODEL_CARD.md').read_text()
  _, front, body = text.split('---\n', 2)
  fields = dict(line.split(': ', 1) for line in front.splitlines())
  index, = json.loads(fields['model-index'])
  accuracy = (expected.argmax(-1) == labels).mean()
  assert index['results'][0]['metrics'][0] == {'type': 'accuracy', 'value': round(accuracy, 6)}
  assert fields['library_name'] == 'fmnist_jax' and 'synthetic-data' in fields['tags']
  assert 'SYNTHETIC DATA' in body and jax.__version__ in body
  right = int((expected.argmax(-1) == labels)[labels == CLASSES.index('checks')].sum())
  low, high = metrics.wilson_interval(right, 10)
  row, = (line for line in body.splitlines() if line.startswith('| checks |'))
  assert '| 10 | ' in row and f'{right / 10:.2%} ({low:.2%} to {high:.2%})' in row
  for name in folder.NAMES[:-1]:
    assert f'`{name}`: ' in body


def test_its_examples_run(made, truth, monkeypatch):
  (out, _), (_, images, _, expected) = made, truth
  monkeypatch.chdir(out)
  examples = (out / 'MODEL_CARD.md').read_text().split('```python\n')[1:]
  assert len(examples) == 3
  for example in examples:
    names = {'images': images}
    exec(example.partition('```')[0], names)
    if 'probabilities' in names:
      np.testing.assert_allclose(names['probabilities'], expected, atol=1e-5)
    else:
      assert set(names['variables']) == {'params', 'batch_stats'}


def test_nothing_is_written_unless_the_runtime_agrees(run, tmp_path, monkeypatch):
  real = runtime.Session.probabilities
  monkeypatch.setattr(runtime.Session, 'probabilities', lambda self, images: real(
      self, images) + np.float32(3e-5))
  with pytest.raises(ExportError, match=r'model\.onnx gives .* to 3\.0e-05, more than 1e-05'):
    fmnist_jax.export_run(run, tmp_path / 'out')
  assert not list(tmp_path.iterdir())


def test_8_bits_that_cost_too_much_are_left_out_and_told(run, tmp_path, monkeypatch, capsys):
  # All ranges from a black image: it saturates.
  real = int8.quantized
  monkeypatch.setattr(int8, 'quantized', lambda model, images: real(model, images * 0))
  command.main(interrupt.Interrupt(), ['--workdir', str(run), f'--output={tmp_path / "out"}'])
  out = capsys.readouterr().out
  assert 'no model_int8.onnx: In 8 bits ' in out and 'of 70 test images fewer are right' in out
  assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == sorted(
      set(folder.NAMES) - {'model_int8.onnx'})
  text = (tmp_path / 'out' / 'MODEL_CARD.md').read_text()
  assert 'There is no `model_int8.onnx`: In 8 bits' in text


@pytest.mark.parametrize('prepare', [
    lambda out: (out.mkdir(), (out / 'model.onnx').write_bytes(b'mine')),
    lambda out: (out.mkdir(), (out / 'MODEL_CARD.md').write_text('mine')),
    lambda out: (out.mkdir(), (out / 'notes.txt').write_text('mine')),
    lambda out: out.write_text('mine'),
    lambda out: out.symlink_to(out.parent / 'elsewhere'),
    lambda out: ((out.parent / 'x').mkdir(), out.symlink_to(out.parent / 'x'))])
def test_what_is_somebody_elses_is_left_alone(run, tmp_path, prepare):
  prepare(tmp_path / 'out')
  before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob('*')}
  with pytest.raises(ExportError, match=r'choose another --output\.$'):
    fmnist_jax.export_run(run, tmp_path / 'out')
  assert before == {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob('*')}


def test_an_older_export_is_replaced_and_one_with_more_in_it_not(made):
  out = shutil.copytree(made[0], made[0].with_name('older'))
  (out / 'model.onnx').unlink()
  folder.check_replaceable(out)
  (out / 'more.txt').touch()
  with pytest.raises(ExportError, match=r"holds 'more\.txt'"):
    folder.check_replaceable(out)


def test_without_its_libraries_a_sentence_says_what_to_install(run, tmp_path, monkeypatch):
  monkeypatch.setattr(folder, 'LIBRARIES', ('onnx', 'no_such_library'))
  with pytest.raises(UserError, match=r"needs no_such_library; .* 'fmnist_jax\[export\]'"):
    fmnist_jax.export_run(run, tmp_path / 'out')


class Sorted(nn.Module):
  """What no layer stands for: a sort."""

  @nn.compact
  def __call__(self, images, *, train):
    x = jnp.sort(images.reshape(len(images), -1))
    return nn.Dense(7)(nn.relu(nn.Dense(8)(x)))


def test_a_model_of_ones_own_gets_what_can_work(tmp_path, capsys):
  train(Sorted(), tmp_path / 'run')
  command.main(interrupt.Interrupt(),
               ['--workdir', str(tmp_path / 'run'), f'--output={tmp_path / "out"}'])
  sentence = 'The model test_export:Sorted has an operation that no layer of an export stands for'
  assert f'no model.onnx: {sentence} (lax.sort' in capsys.readouterr().out
  assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == [
      'MODEL_CARD.md', 'model.safetensors', 'model.stablehlo']
  assert sentence in (tmp_path / 'out' / 'MODEL_CARD.md').read_text()


class Called(nn.Module):
  """What only this process can compute."""

  @nn.compact
  def __call__(self, images, *, train):
    x = images.reshape(len(images), -1)
    return jax.pure_callback(np.tanh, x, x) * self.param('scale', nn.initializers.ones, ())


def test_a_program_that_jax_cannot_export_is_told():
  variables = {'params': {'scale': np.float32(1)}}
  with pytest.raises(ExportError, match=r'^jax\.export does not take the model: .+\.$'):
    serving.program(Called(), variables, (2, 5, 1), 10)


def test_names_are_shown_as_they_are():
  assert card._text('a|b <i>*') == r'a\|b &lt;i&gt;\*'
