"""What TensorBoard shows of a run: an event file in its directory, in step with metrics.jsonl.

All that is in it follows from config.json, metrics.jsonl and, in the end, results.json; so after
every epoch it is brought up to them, whatever happened to it or to the run meanwhile: what is
missing is added, and where the run went back behind what the file tells, a new one takes its place.
Epochs stand where the step does in TensorBoard, and seconds of training where its clock does.
"""

from __future__ import annotations

import importlib.util
import os
import stat
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fmnist_jax import config as config_lib
from fmnist_jax import settings
from fmnist_jax.errors import ConfigError, WorkdirError
from fmnist_jax.storage import files
from fmnist_jax.storage.workdir import History

Record = Mapping[str, Any]

_NAME = 'events.out.tfevents.{}.fmnist_jax'
_AXES = ('epoch', 'step')  # Fields of a record that are no curves.
_RESULTS = ('accuracy', 'balanced_accuracy', 'loss', 'macro_f1', 'expected_calibration_error',
            'best_validation_accuracy')


def check(config: config_lib.Config) -> None:
  """Raises ConfigError where event files are asked for and cannot be written."""
  if config.train.tensorboard and importlib.util.find_spec('tensorboardX') is None:
    raise ConfigError("train.tensorboard needs the package tensorboardX: pip install "
                      "'fmnist_jax[tensorboard]'.")


def recorder(config: config_lib.Config, directory: Path,
             on_record: Callable[[dict[str, Any]], None] = lambda record: None
             ) -> Callable[[dict[str, Any]], None]:
  """An `on_record` of the run in a directory: what is asked for here, then another one."""
  if not config.train.tensorboard:
    return on_record
  history = History(directory / 'metrics.jsonl')
  def told(record: dict[str, Any]) -> None:
    update(config, directory, history.read())
    on_record(record)
  return told


def update(config: config_lib.Config, directory: Path, records: Sequence[Record],
           results: Mapping[str, Any] | None = None) -> None:
  """Brings the event file of a run up to what is known of it, if its config asks for one.

  Args:
    config: of the run.
    directory: of the run, held by this process.
    records: those of metrics.jsonl, all of them.
    results: the contents of results.json, once there are any.

  Raises:
    WorkdirError: when it cannot be written.
  """
  if not config.train.tensorboard:
    return
  try:
    began = (directory / 'config.json').stat().st_mtime
    _bring_up(directory, _content(config, began, records, results))
  except OSError as error:
    raise WorkdirError(f'The event file in {directory} could not be written: '
                       f'{files.reason(error)}; free some space or give permission, then run the '
                       'same command again.') from error


def _bring_up(folder: Path, wanted: bytes) -> None:
  found = sorted(folder.glob(_NAME.format('*')))
  if [path for path in found if path.lstat().st_size] != found[-1:] or not (
      found and _extended(found[-1], wanted)):
    for old in found:  # Emptied, since one that watches would wait for one that is gone for ever.
      files.write_bytes(old, b'')
    # TensorBoard reads files in the order of their names.
    files.write_bytes(folder / _NAME.format(f'{time.time():.6f}'), wanted)


def _extended(path: Path, wanted: bytes) -> bool:
  """Adds to a file what it lacks, unless it holds anything else or is not the run's alone."""
  try:
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
  except OSError:  # A link, or something that cannot be opened.
    return False
  with open(descriptor, 'r+b') as file:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
      return False
    have = file.read(len(wanted) + 1)
    if not wanted.startswith(have):
      return False
    file.write(wanted[len(have):])
  return True


def _content(config: config_lib.Config, began: float, records: Sequence[Record],
             results: Mapping[str, Any] | None) -> bytes:
  """The whole event file; what comes later is at its end."""
  from tensorboardX import summary
  from tensorboardX.proto.event_pb2 import Event, SessionLog
  from tensorboardX.proto.summary_pb2 import Summary

  def scalars(values: Mapping[str, float]) -> Summary:
    return Summary(value=[Summary.Value(tag=tag, simple_value=value)
                          for tag, value in values.items()])

  # The second tells who watches to forget what a file before this one said.
  events = [Event(wall_time=began, file_version='brain.Event:2'),
            Event(wall_time=began, session_log=SessionLog(status=SessionLog.START))]
  for record in records:
    now = began + record['seconds']
    events.append(Event(wall_time=now, step=record['epoch'], summary=scalars(
        {name: value for name, value in record.items() if name not in _AXES})))
  if results:
    found = {f'results/{name}': results[name] for name in _RESULTS if results[name] is not None}
    image = _confusion_matrix(results)
    width, height = struct.unpack('>II', image[16:24])  # As a PNG file begins.
    picture = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=image)
    # Without the list of columns, so that runs of other settings have theirs in the table too.
    _, started, ended = summary.hparams(_settings(config), found)
    events += [Event(wall_time=now, step=results['best_epoch'], summary=part) for part in (
        scalars(found),
        Summary(value=[Summary.Value(tag='results/confusion_matrix', image=picture)]),
        started, ended)]
  return b''.join(map(_framed, events))


def _framed(event: Any) -> bytes:
  """An event as it stands in a file: its length and itself, each with a checksum."""
  from tensorboardX.record_writer import masked_crc32c
  body = event.SerializeToString(deterministic=True)
  head = struct.pack('<Q', len(body))
  checksum = lambda content: struct.pack('<I', masked_crc32c(content))
  return head + checksum(head) + body + checksum(body)


def _confusion_matrix(results: Mapping[str, Any]) -> bytes:
  """The report's picture, a PNG file."""
  from fmnist_jax.report import canvas, pictures  # matplotlib takes a while.
  names = [entry['name'] for entry in results['per_class']]
  with canvas.drawing():
    return canvas.png(pictures.confusion_matrix(
        np.array(results['confusion_matrix']), names, canvas.LIGHT))


def _settings(config: config_lib.Config) -> dict[str, Any]:
  """Every setting that makes a run what it is, by its dotted name; and what sections are."""
  kinds = {name: settings.kind_name(type(section))
           for name, declared, section in settings.sections(config)
           if type(section) is not declared}
  places = settings.locations(config)
  return kinds | {
      name: value if isinstance(value, (bool, int, float, str)) else ', '.join(map(str, value))
      for name, value, _ in settings.leaves(config) if name not in places}
