"""What experiments share: arguments, training of populations, results.json, README, results page.

`python experiments/record.py` writes the results page, README.md beside this file, again.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fmnist_jax import command, machine
from fmnist_jax.interrupt import Interrupt

if TYPE_CHECKING:
  from fmnist_jax.config import Config

machine.prepare_environment()  # Scripts import this before anything that imports jax.

BEGIN, END = '<!-- numbers: begin -->', '<!-- numbers: end -->'
QUICK = {'train.epochs': 1, 'data.train_examples': 3000, 'data.validation_examples': 500,
         'data.test_examples': 500}


@dataclasses.dataclass
class Experiment:
  """One start of an experiment.

  Attributes:
    folder: of the experiment, where results.json, README.md and pictures go.
    runs: where what is trained lies; experiments that train the same share it.
    args: of the command line.
    interrupt: signals.
    seconds: of training, by population or run that was used, whichever experiment trained it.
  """
  folder: pathlib.Path
  runs: pathlib.Path
  args: argparse.Namespace
  interrupt: Interrupt
  seconds: dict[str, float] = dataclasses.field(default_factory=dict)

  @property
  def output(self) -> pathlib.Path:
    """Where results go: a trial leaves the folder as it is."""
    return self.runs / self.folder.name if self.args.quick else self.folder

  def population(self, name: str, config: Config, data_dir: str = '') -> pathlib.Path:
    """Trains a config with `--seeds` seeds, or goes on; returns the population's directory."""
    from fmnist_jax import config as config_lib
    from fmnist_jax.population import train as population
    seeds = self.args.seeds
    changes = dict(QUICK) if self.args.quick else {}
    changes['data.data_dir'] = data_dir or self.args.data_dir or config.data.data_dir
    directory = self.runs / f'{name}_x{seeds}'
    print(f'-- {directory}', flush=True)
    machine.setup(compile_cache=config.train.compile_cache)
    with self.clock(directory.name, stopped=(directory / 'population.json').exists()) as seconds:
      population.train_population(config_lib.replace(config, changes), directory, seeds=seeds,
                                  signals=self.interrupt)
      self.seconds[directory.name] = seconds()
    return directory

  def run(self, name: str, config: Config, source: Any = None) -> Any:
    """Trains a single run without its report, or goes on; returns `summary.read` of it.

    Args:
      name: of its directory.
      config: of it.
      source: a `transfer.Source` to start from, in place of what `train.init_from` names.
    """
    from fmnist_jax import config as config_lib
    from fmnist_jax import progress, train, transfer
    from fmnist_jax.equipment import Equipment
    from fmnist_jax.population import summary
    from fmnist_jax.storage.workdir import Workdir
    from fmnist_jax.trainer import Trainer
    machine.setup(compile_cache=config.train.compile_cache)
    config, directory, dataset, mesh = train.prepare(config_lib.validate(config), self.runs / name)
    with Workdir(directory, config) as workdir, progress.Console() as console, self.clock(
        name, stopped=(directory / 'results.json').exists()) as seconds:
      if workdir.results() is None:
        print(f'-- {directory}', flush=True)
        source = source or transfer.find(config, dataset, begun=False)
        trainer = Trainer(config, workdir, Equipment(config, dataset, mesh, source), console,
                          self.interrupt)
        try:
          trainer.resume()
          trainer.fit()
          trainer.finish(with_report=False)
        finally:
          trainer.checkpoints.close()
      self.seconds[name] = seconds()
    return summary.read(directory)

  def save(self, results: Mapping[str, Any], text: str,
           pictures: Mapping[str, bytes] | None = None) -> None:
    """Writes results.json and pictures, puts `text` between the marks of README.md, and the first
    table of it into the results page."""
    from fmnist_jax.storage import files
    self.output.mkdir(parents=True, exist_ok=True)
    for name, content in (pictures or {}).items():
      files.write_bytes(self.output / name, content)
    files.write_json(self.output / 'results.json', results)
    before, _, rest = (self.folder / 'README.md').read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    filled = f'{before}{BEGIN}\n{text.strip()}\n{END}{after}'
    files.write_bytes(self.output / 'README.md', filled.encode())
    if not self.args.quick:
      gather()
    print(text)
    print(f'wrote {self.output / "results.json"}')

  @contextlib.contextmanager
  def clock(self, name: str, stopped: bool = False) -> Iterator[Callable[[], float]]:
    """Adds up the seconds of all starts of something; yields what tells the sum so far.

    Args:
      name: of what is timed.
      stopped: nothing is left to do, and looking at it does not count.
    """
    path = self.runs / f'{name}.seconds.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(path.read_text()) if path.exists() else 0.0
    began = time.perf_counter()
    total = lambda: before + (0.0 if stopped else time.perf_counter() - began)
    try:
      yield total
    finally:
      path.write_text(json.dumps(total()))


def chosen(asked: str, known: Sequence[str], what: str) -> list[str]:
  """The names in a list with commas; without any, all that are known.

  Args:
    asked: the list.
    known: names.
    what: they are of, for the message of a UserError: one of the list is not known.
  """
  from fmnist_jax.errors import UserError
  names = asked.split(',') if asked else list(known)
  if unknown := sorted(set(names) - set(known)):
    raise UserError(f'There is no {what} {", ".join(unknown)}; there are {", ".join(known)}.')
  return names


def table(rows: Sequence[Sequence[str]]) -> str:
  """Rows of cells, the first the header, as Markdown; the first column left, the others right."""
  header, *lines = rows
  marks = ['---', *['---:'] * (len(header) - 1)]
  return '\n'.join(f'| {" | ".join(row)} |' for row in [header, marks, *lines])


def duration(seconds: float) -> str:
  """'1 h 12 min'"""
  minutes = round(seconds / 60)
  return f'{minutes // 60} h {minutes % 60} min' if minutes >= 60 else f'{minutes} min'


def points(change: Any) -> str:
  """'+1.23 +- 0.45': a `metrics.Interval` of percentage points."""
  width = '' if change.half_width is None else f' +- {change.half_width:.2f}'
  return f'{change.mean:+.2f}{width}'


def took(experiment: Experiment) -> str:
  """How long the populations trained that an experiment used."""
  return f'To train all this took {duration(sum(experiment.seconds.values()))}.'


def means(experiment: Experiment, one: Mapping[str, Any]) -> str:
  """What the numbers of a table are: of how many seeds and images, on what.

  Args:
    experiment: whose table it is.
    one: the contents of a population.json.
  """
  drawn = ' SYNTHETIC' if one['synthetic'] else ''
  return (f'Means over {experiment.args.seeds} seeds with 95 % intervals (t), on '
          f'{one["examples"]:,}{drawn} {one["split"]} images. {where(one)}.')


def gather() -> str:
  """Writes the first table and the lessons of every experiment into the results page.

  Returns:
    The page.
  """
  page = pathlib.Path(__file__).with_name('README.md')
  before, _, rest = page.read_text().partition(BEGIN)
  _, _, after = rest.partition(END)
  sections = []
  for readme in sorted(page.parent.glob('*/README.md')):
    question, _, rest = readme.read_text().removeprefix('# ').partition('\n')
    numbers = rest.partition(BEGIN)[2].partition(END)[0].split('\n\n')
    tables = [part.strip() for part in numbers if part.strip().startswith('|')]
    name = readme.parent.name
    sections.append(f'## {question}\n\n[{name}]({name}/README.md)\n\n'
                    f'{tables[0] if tables else "Not measured yet."}')
    results = readme.with_name('results.json')
    lessons = json.loads(results.read_text()).get('lessons', ()) if results.exists() else ()
    if lessons:
      sections[-1] += '\n\n' + '\n'.join(f'- {lesson}' for lesson in lessons)
  text = '\n\n'.join([before + BEGIN, *sections, END + after])
  page.write_text(text)
  return text


def where(results: Mapping[str, Any]) -> str:
  """What it ran on, from a results.json or population.json."""
  return f'{results["device"]}, jax {results["versions"]["jax"]}'


def start(file: str, description: str, body: Callable[[Experiment], None], *, seeds: int,
          extra: Callable[[argparse.ArgumentParser], None] = lambda parser: None) -> None:
  """The command line of an experiment; the same command again goes on.

  Args:
    file: `__file__` of the script.
    description: what it does.
    body: does it.
    seeds: by default.
    extra: adds arguments of its own.
  """
  def main(interrupt: Interrupt) -> None:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('--seeds', type=int, default=seeds, help='members of each population')
    parser.add_argument('--runs', default='', help='where what is trained lies (default: '
                        'runs/experiments, for a trial runs/experiments-quick)')
    parser.add_argument('--data_dir', default='', help='folder with the four Fashion-MNIST files, '
                        'if not where the library looks')
    parser.add_argument('--quick', action='store_true', help='a trial of minutes on a few images: '
                        'everything goes to --runs, nothing into this folder')
    extra(parser)
    args = parser.parse_args()
    runs = args.runs or ('runs/experiments-quick' if args.quick else 'runs/experiments')
    body(Experiment(pathlib.Path(file).resolve().parent, pathlib.Path(runs), args, interrupt))

  command.run(main, leave=False)


if __name__ == '__main__':
  gather()
